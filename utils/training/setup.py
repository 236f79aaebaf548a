"""Build everything that a training run needs from its options, and check all of it before anything is written."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sed_sr.data.benchmarks import Benchmark, find_benchmark
from sed_sr.data.build import build_dataset
from sed_sr.data.datasets import TrainingSet
from sed_sr.data.image_folders import image_list
from sed_sr.models.build import build_generator, build_train_step
from sed_sr.models.train_step import TrainStep
from sed_sr.options.schema import Options, SpandrelOptions
from sed_sr.utils.evaluation.evaluate import check_best_by
from sed_sr.utils.evaluation.metrics import Metric, build_metrics, metric_weights
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import disable_malloc_trim
from sed_sr.utils.training.batch_options import batches_of, measure_batch_size, with_batches
from sed_sr.utils.training.batch_size import Batches, GivenBatches, resolve_auto, resolve_batches
from sed_sr.utils.training.checklist import Checklist, check_disk
from sed_sr.utils.training.frozen_weights import FrozenStates, load_frozen_states, pretrained_weights
from sed_sr.utils.training.image_checks import check_training_images, format_dataset
from sed_sr.utils.training.resume import (
    Start,
    discriminator_to_start_from,
    file_to_start_from,
    find_start,
    with_changed_images,
)
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.discriminator_weights import discriminator_weights, load_shared
from sed_sr.utils.weights.extractor_file import RANDOM
from sed_sr.utils.weights.formats import GeneratorWeights, generator_weights, load_into
from sed_sr.utils.weights.pretrained import locate, verify


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that a training run consists of, after all checks have passed."""

    options: Options  # with the batches of a step
    batches: Batches
    folder: RunFolder
    device: torch.device
    dataset: TrainingSet
    benchmarks: list[Benchmark]
    start: Start  # without its tensors, which the training step has
    metrics: dict[str, Metric]
    train_step: TrainStep


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


def prepare(
    options: Options, checks: Checklist, *, resume: str | None, thorough: bool, world: World
) -> TrainingSetup | None:
    """Find the data and the weights, build the networks, and check all of it. Nothing is written.

    Only the main process lists folders, opens images, reads weights and decides what the run starts from. It shares the
    results with the other processes. They build their networks with random weights, which the main process's replace
    later (`utils.train_run.synchronize`).

    Args:
        checks: receives the results of the checks of all processes.
        resume: the argument of `train.py`.
        thorough: decode every image.

    Returns:
        None on every process if a check has failed on one of them.
    """
    with world.raise_together():
        batches = resolve_batches(batches_of(options), processes=world.size)
        options = with_batches(options, batches)
    folder = RunFolder(options.paths.out_root / options.name)
    device = checks.check("device", partial(world.device, options.device))
    found = None
    if world.main:
        dataset = _find_dataset(options, checks, thorough=thorough)
        benchmarks = _find_benchmarks(options, checks)
        start = _find_start(options, checks, folder, dataset, resume, thorough=thorough, processes=world.size)
        if dataset is not None and benchmarks is not None and start is not None:
            found = FoundFiles(dataset, benchmarks, start, _find_generator(options, checks, start))
    # The other processes receive the tensors of `start` with those of the training step.
    shared = world.broadcast(found.without_tensors() if found is not None else None)
    checks.gather(world)
    setup = None
    if not checks.failures:
        assert device is not None  # otherwise a check would have failed
        assert shared is not None
        setup = _build(options, batches, folder, device, found or shared, checks=checks, world=world)
    if setup is None:
        checks.not_checked += [name for name in ("scores", "networks", "disk", "memory") if name not in checks.notes]
    return setup


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
    of_metrics = metric_weights(options.validation.metrics) if options.validation.benchmarks else ()
    for name in (*pretrained_weights(options).values(), given, given_d, *of_metrics):
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


def _build(
    options: Options,
    given: Batches | GivenBatches,
    folder: RunFolder,
    device: torch.device,
    found: FoundFiles,
    *,
    checks: Checklist,
    world: World,
) -> TrainingSetup | None:
    """Build metrics and training step, and load the weights or the state that the run starts from.

    Args:
        found: on the main process, with tensors.
    """
    start, benchmarks = found.start, found.benchmarks
    generator_state = world.broadcast_tensors(found.generator, device=torch.device("cpu"))
    metrics = _build_metrics(options, checks, device, world) if benchmarks else {}
    best_by = options.validation.best_by
    if best_by is not None and metrics is not None and world.main:
        check = partial(check_best_by, metrics[best_by], benchmarks[0], scale=options.scale)
        checks.check("best weights", check)
    build = partial(_build_train_step, options, generator_state, device, start, pretrained=world.main)
    train_step = checks.check("networks", build, _format_networks)
    if train_step is not None and start.discriminator is not None and world.main:
        checks.check("discriminator", partial(_load_discriminator, train_step, start.discriminator))
    if isinstance(given, GivenBatches):
        batches = _choose_batches(options, given, train_step, found, checks=checks, device=device, world=world)
    else:
        batches = given
    if train_step is not None and world.main:
        steps_left = max(0, options.train.total_steps - start.step)
        checks.check("disk", partial(check_disk, options, folder, train_step, benchmarks, steps_left=steps_left))
    checks.gather(world)
    if checks.failures:
        return None
    assert metrics is not None  # otherwise a check would have failed
    assert train_step is not None
    assert batches is not None
    train_step.batches_per_step = batches.per_step
    return TrainingSetup(
        options=with_batches(options, batches),
        batches=batches,
        folder=folder,
        device=device,
        dataset=found.dataset,
        benchmarks=benchmarks,
        start=start.without_tensors(),
        metrics=metrics,
        train_step=train_step,
    )


def _build_metrics(options: Options, checks: Checklist, device: torch.device, world: World) -> dict[str, Metric] | None:
    """Build the metrics, first on one process of each machine, which downloads and verifies their weights for all."""
    build = partial(
        build_metrics,
        options.validation.metrics,
        pretrained_root=options.paths.pretrained_root,
        device=device,
        check_hash=world.local_rank == 0,
    )
    metrics = None
    for first in (True, False):
        if (world.local_rank == 0) is first:
            metrics = checks.check("scores", build, ", ".join)
        world.gather(None)  # a barrier
    return metrics


def _build_train_step(
    options: Options,
    generator_state: dict[str, Tensor] | None,
    device: torch.device,
    start: Start,
    *,
    pretrained: bool,
) -> TrainStep:
    """Build the training step, with what `start` holds.

    Args:
        generator_state: the weights that a generator of spandrel is built from.
        pretrained: load the weights of the frozen networks; otherwise they are random.
    """
    generator = build_generator(options, generator_state)
    if start.weights is not None:
        assert start.path is not None
        load_into(generator, start.weights, start.path)
    if device.type == "cpu":
        disable_malloc_trim()
    states = load_frozen_states(options) if pretrained else FrozenStates()
    train_step = build_train_step(
        options, generator=generator, device=device, extractor_state=states.extractor, vgg_state=states.vgg
    )
    if start.train_step is not None:
        train_step.load_state_dict(start.train_step)
    return train_step


def _load_discriminator(train_step: TrainStep, path: Path) -> str:
    """Load the discriminator's weights from a file. Returns a description."""
    assert train_step.discriminator is not None  # otherwise the options are refused
    return load_shared(train_step.discriminator, discriminator_weights(checkpoint.load(path), path))


def _choose_batches(
    options: Options,
    given: GivenBatches,
    train_step: TrainStep | None,
    found: FoundFiles,
    *,
    checks: Checklist,
    device: torch.device,
    world: World,
) -> Batches | None:
    """The batch size of the resumed run, or the largest that fits on every process; None if a check has failed."""
    size, reason = found.start.batch_size, "as before"
    if size is None and train_step is not None:
        measure = partial(measure_batch_size, options, train_step, found.dataset, device=device, world=world)
        size = checks.check("batch size", measure)
        reason = f"the largest that fits, of {len(found.dataset):,} images"
    sizes = world.gather(size)
    if None in sizes:
        return None
    batches = resolve_auto(given, min(sizes), processes=world.size)
    checks.notes["batch size"] = f"{batches.size}, {reason}"
    return batches


def _format_checksum(path: Path) -> str:
    return f"{path}, {'its sha256 is right' if verify(path) else 'no sha256 is known for it'}"


def _format_networks(train_step: TrainStep) -> str:
    networks: dict[str, nn.Module] = {train_step.generator.about: train_step.generator}
    if train_step.discriminator is not None:
        networks[type(train_step.discriminator).__name__] = train_step.discriminator
    return ", ".join(
        f"{name} with {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"
        for name, network in networks.items()
    )
