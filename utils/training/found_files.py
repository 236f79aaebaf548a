"""What the main process finds for a run: the images, and what the networks start from."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from sed_sr.data.benchmarks import Benchmark, find_benchmark
from sed_sr.data.build import build_dataset
from sed_sr.data.datasets import TrainingSet
from sed_sr.data.image_folders import image_list
from sed_sr.options.schema import Options, SpandrelOptions
from sed_sr.utils.evaluation.metrics import metric_weights
from sed_sr.utils.training.checklist import Checklist
from sed_sr.utils.training.frozen_weights import pretrained_weights
from sed_sr.utils.training.image_checks import check_training_images, format_dataset
from sed_sr.utils.training.resume import (
    Start,
    discriminator_to_start_from,
    file_to_start_from,
    find_start,
    with_changed_images,
)
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.training.wandb_logger import check_wandb
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.extractor_file import RANDOM
from sed_sr.utils.weights.formats import GeneratorWeights, generator_weights
from sed_sr.utils.weights.pretrained import locate, verify


@dataclass(frozen=True)
class FoundFiles:
    """What the main process has found for a run."""

    dataset: TrainingSet
    benchmarks: list[Benchmark]
    start: Start
    generator: dict[str, Tensor] | None  # the weights that a generator of spandrel is built from

    def without_tensors(self) -> "FoundFiles":
        """A copy that is small enough to be sent to other processes."""
        return replace(self, start=self.start.without_tensors(), generator=None)


def find_files(
    options: Options, checks: Checklist, folder: RunFolder, *, resume: str | None, thorough: bool, processes: int
) -> FoundFiles | None:
    """Find the images, and the state or the weights that the run starts from; None if something was not found.

    Args:
        checks: receives the results of the checks.
        resume: the argument of `train.py`.
        thorough: decode every image.
        processes: number of processes of this run.
    """
    if "wandb" in options.logging:
        checks.check("wandb", check_wandb)
    dataset = _find_dataset(options, checks, thorough=thorough)
    benchmarks = _find_benchmarks(options, checks)
    start = _find_start(options, checks, folder, dataset, resume, thorough=thorough, processes=processes)
    if dataset is None or benchmarks is None or start is None:
        return None
    return FoundFiles(dataset, benchmarks, start, _find_generator(options, checks, start))


def _find_dataset(options: Options, checks: Checklist, *, thorough: bool) -> TrainingSet | None:
    dataset = checks.check("training set", partial(build_dataset, options, scale=options.scale), format_dataset)
    if dataset is None:
        checks.not_checked.append("content of the images")
    else:
        check_training_images(dataset, checks, seed=options.seed, thorough=thorough)
    return dataset


def _find_benchmarks(options: Options, checks: Checklist) -> list[Benchmark] | None:
    """Find all benchmarks of the validation; None if one of them was not found."""
    names = options.validation.benchmarks
    found = [
        checks.check(
            f"benchmark {name}",
            partial(find_benchmark, options.paths.data_test_root, name, scale=options.scale),
            lambda benchmark: f"{len(benchmark.images)} images",
        )
        for name in names
    ]
    benchmarks = [benchmark for benchmark in found if benchmark is not None]
    return benchmarks if len(benchmarks) == len(names) else None


def _find_start(
    options: Options,
    checks: Checklist,
    folder: RunFolder,
    dataset: TrainingSet | None,
    resume: str | None,
    *,
    thorough: bool,
    processes: int,
) -> Start | None:
    """Find the state or the weights that the run starts from, and download missing pretrained weights."""
    find = partial(locate, pretrained_root=options.paths.pretrained_root)
    given = file_to_start_from(resume, options, folder)
    given_d = discriminator_to_start_from(resume, options, folder)
    scores = metric_weights(options.validation.metrics) if options.validation.benchmarks else []
    for name in (*pretrained_weights(options).values(), given, given_d, *scores):
        if name is not None and name != RANDOM:
            checks.check(name, partial(find, name), _format_checksum if thorough else str)
    if checks.failures.keys() & {given, given_d}:
        return None

    def start() -> Start:
        path, path_d = (find(name) if name is not None else None for name in (given, given_d))
        found = find_start(resume, options, folder, path=path, discriminator=path_d, processes=processes)
        return found if dataset is None else with_changed_images(found, image_list(dataset.hr_folders))

    found = checks.check("start", start, lambda start: "\n".join(start.messages))
    if found is not None:
        checks.check("run folder", partial(folder.check, in_place=found.in_place), lambda _: str(folder.root))
    return found


def _find_generator(options: Options, checks: Checklist, start: Start) -> dict[str, Tensor] | None:
    """Read the weights that a generator of spandrel is built from: those of a training state need no other file."""
    if not isinstance(options.generator, SpandrelOptions):
        return None
    if start.train_step is not None:
        return start.train_step["generator"]
    name = options.generator.weights

    def read() -> GeneratorWeights:
        path = locate(name, pretrained_root=options.paths.pretrained_root)
        return generator_weights(checkpoint.load(path), path)

    weights = checks.check(f"generator.weights {name}", read, lambda weights: weights.origin)
    return None if weights is None else weights.original


def _format_checksum(path: Path) -> str:
    return f"{path}, {'its sha256 is right' if verify(path) else 'no sha256 is known for it'}"
