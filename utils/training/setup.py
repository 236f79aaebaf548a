"""From options to everything that a run needs, looked at before anything is written."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from sed_sr.data.benchmarks import Benchmark, find_benchmark
from sed_sr.data.build import build_dataset, build_training_pairs
from sed_sr.data.datasets import HRImages, PairedImages
from sed_sr.data.image_folders import check_readable, image_list
from sed_sr.data.loader import BATCHES_AHEAD, worker_count
from sed_sr.data.pair_content import check_content
from sed_sr.models.build import RANDOM, build_generator, build_train_step, pretrained_weights, with_random_weights
from sed_sr.models.train_step import TrainStep
from sed_sr.options.schema import Options
from sed_sr.utils.evaluation.evaluate import check_best_by
from sed_sr.utils.evaluation.metrics import Metric, build_metrics, metric_weights
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import free_bytes
from sed_sr.utils.training.batch_size import AUTO, Batches, largest_batch_size, settle_batch_size, share_batches
from sed_sr.utils.training.checklist import Checklist, check_disk
from sed_sr.utils.training.resume import Start, file_to_start_from, find_start, with_changed_images
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.weights.formats import load_into
from sed_sr.utils.weights.pretrained import locate, verify

COMPARED_PAIRS = 16  # LR with HR downscaled, before every run; well below a second
COMPARED_PAIRS_THOROUGHLY = 256


@dataclass
class TrainingSetup:
    """What a run consists of; None in place of what could not be had, of which `checks` tells."""

    options: Options
    folder: RunFolder
    checks: Checklist
    device: torch.device | None
    dataset: PairedImages | HRImages | None = None
    benchmarks: list[Benchmark | None] | None = None
    start: Start | None = None
    metrics: dict[str, Metric] | None = None
    train_step: TrainStep | None = None


def prepare(options: Options, *, resume: str | None, thorough: bool, world: World) -> TrainingSetup:
    """Look at everything before anything is written; `thorough` looks at every image.

    The main process alone lists folders, opens images and reads weights, and decides what the run starts from. The
    others are told, and get the weights of all networks from it.
    """
    with world.raise_together():
        options = with_batches(options, share_batches(batches_of(options), processes=world.size))
        generator = build_generator(options)
    checks, folder = Checklist(), RunFolder(options.paths.out_root / options.name)
    ready = TrainingSetup(options, folder, checks, checks.look("device", partial(world.device, options.device)))
    start = None
    if world.main:
        _look_at_images(ready, scale=generator.scale, thorough=thorough)
        start = _find_start(ready, resume, thorough=thorough, processes=world.size)
    # whose tensors follow later
    found = (ready.dataset, ready.benchmarks, start.without_tensors() if start is not None else None)
    ready.dataset, ready.benchmarks, ready.start = world.share(found)
    checks.share(world)
    if not checks.wrong:
        _build_metrics(ready, world)
        _assemble(ready, start, generator, world)
        checks.share(world)
    if checks.wrong:
        checks.left += [what for what in ("scores", "networks", "disk", "memory") if what not in checks.found]
    return ready


def _look_at_images(ready: TrainingSetup, *, scale: int, thorough: bool) -> None:
    """Find the training set and the benchmarks."""
    options, checks = ready.options, ready.checks
    ready.dataset = checks.look("training set", partial(build_dataset, options, scale=scale), _in_words)
    if ready.dataset is None:
        checks.left.append("content of the images")
    else:
        _look_into(ready.dataset, checks, seed=options.seed, thorough=thorough)
    ready.benchmarks = [
        checks.look(
            f"benchmark {name}",
            partial(find_benchmark, options.paths.data_test_root, name, scale=scale),
            lambda benchmark: f"{len(benchmark.images)} images",
        )
        for name in options.validation.benchmarks
    ]


def _find_start(ready: TrainingSetup, resume: str | None, *, thorough: bool, processes: int) -> Start | None:
    """Find what the run starts from, and the pretrained weights, which are downloaded where they are not there."""
    options, checks, folder = ready.options, ready.checks, ready.folder
    find = partial(locate, pretrained_root=options.paths.pretrained_root)
    given = file_to_start_from(resume, options, folder)
    for name in (*pretrained_weights(options).values(), given, *metric_weights(options.validation.metrics)):
        if name not in (RANDOM, None):
            checks.look(name, partial(find, name), _with_checksum if thorough else str)
    if given in checks.wrong:
        return None

    def start() -> Start:
        path = find(given) if given is not None else None
        found = find_start(resume, options, folder, path=path, processes=processes)
        return found if ready.dataset is None else with_changed_images(found, image_list(ready.dataset.hr_folders))

    found = checks.look("start", start, lambda start: "\n".join(start.told))
    if found is not None:
        checks.look("run folder", partial(folder.check, in_place=found.in_place), lambda _: str(folder.root))
    return found


def _build_metrics(ready: TrainingSetup, world: World) -> None:
    """Build the scores, on one process of each machine first: it downloads, and compares with checksums, for all."""
    build = partial(
        build_metrics,
        ready.options.validation.metrics,
        pretrained_root=ready.options.paths.pretrained_root,
        device=ready.device,
        compare=world.local_rank == 0,
    )
    for first in (True, False):
        if (world.local_rank == 0) is first:
            ready.metrics = ready.checks.look("scores", build, ", ".join)
        world.gather(None)  # the others wait


def _assemble(ready: TrainingSetup, start: Start | None, generator: nn.Module, world: World) -> None:
    """Build what trains, and give it the weights or the state that it starts from.

    Args:
        start: with its tensors, on the main process.
    """
    options, checks = ready.options, ready.checks
    best_by = options.validation.best_by
    if best_by is not None and ready.metrics is not None and world.main:
        check = partial(check_best_by, ready.metrics[best_by], ready.benchmarks[0], scale=generator.scale)
        checks.look("best weights", check)

    def build() -> TrainStep:
        if world.main and start.weights is not None:
            load_into(generator, start.weights, start.path)
        own = options if world.main else with_random_weights(options)
        train_step = build_train_step(own, generator=generator, device=ready.device)
        if world.main and start.train_step is not None:
            train_step.load_state_dict(start.train_step)
        return train_step

    ready.train_step = checks.look("networks", build, _sizes)
    if options.dataloader.batch_size == AUTO:
        _settle_batch_size(ready, world)
    if ready.train_step is not None and world.main:
        steps_left = max(0, options.train.total_steps - ready.start.step)
        check = partial(check_disk, options, ready.folder, ready.train_step, ready.benchmarks)
        checks.look("disk", partial(check, steps_left=steps_left))


def _settle_batch_size(ready: TrainingSetup, world: World) -> None:
    """Put a number in place of `auto`: that of the run that goes on, or what fits on every process."""
    options, before = ready.options, ready.start.batch_size
    largest, why = before, "as before"
    if before is None and ready.train_step is not None:
        largest = ready.checks.look("batch size", partial(_largest_batch_size, ready, world))
        why = f"the largest that fits, of {len(ready.dataset):,} images"
    found = world.gather(largest)
    if None in found:
        return  # something is wrong there, and was noted
    batches = settle_batch_size(batches_of(options), min(found), processes=world.size)
    ready.options = with_batches(options, batches)
    ready.checks.found["batch size"] = f"{batches.size}, {why}"
    if ready.train_step is not None:
        ready.train_step.batches_per_step = batches.per_step


def batches_of(options: Options) -> Batches:
    """What the options say of the batches of a step."""
    return Batches(options.dataloader.batch_size, options.train.accumulate_batches, options.train.total_batch_size)


def with_batches(options: Options, batches: Batches) -> Options:
    """The options with these batches in a step."""
    train = {"accumulate_batches": batches.per_step, "total_batch_size": batches.total}
    return options.model_copy(
        update={
            "dataloader": options.dataloader.model_copy(update={"batch_size": batches.size}),
            "train": options.train.model_copy(update=train),
        }
    )


def _largest_batch_size(ready: TrainingSetup, world: World) -> int:
    options, device, sample = ready.options, ready.device, ready.dataset[0, 0]
    on_cpu = device.type == "cpu"  # where the processes share the memory among them, and with the batches that wait
    batches = worker_count(options.dataloader.num_workers, world.local_size) * BATCHES_AHEAD + 1
    total = options.train.total_batch_size
    return largest_batch_size(
        ready.train_step,
        build_training_pairs(options, scale=ready.train_step.generator.scale),
        sample,
        most=max(1, len(ready.dataset) // world.size if total is None else total // world.size),
        free_bytes=free_bytes(device) // (world.size if on_cpu else 1),
        waiting_bytes=batches * sum(sample[name].nbytes for name in ("lr", "hr") if name in sample) if on_cpu else 0,
    )


def _look_into(dataset: PairedImages | HRImages, checks: Checklist, *, seed: int, thorough: bool) -> None:
    """Decode images: a few, to see that LR is HR downscaled; `thorough`, all of them and more to compare."""
    if thorough:
        images = sum(len(folder.files) for folder in dataset.folders)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("reading every image", total=images)
            read = partial(check_readable, dataset.folders, on_image=lambda: progress.advance(task))
            checks.look("readable", read, lambda _: f"all {images:,} images")
    if isinstance(dataset, HRImages):
        return
    samples = COMPARED_PAIRS_THOROUGHLY if thorough else COMPARED_PAIRS
    compare = partial(check_content, dataset.pairs, scale=dataset.scale, samples=samples, seed=seed)
    checks.look("LR is HR downscaled", compare, lambda compared: f"in {compared} of {len(dataset):,} pairs, compared")


def _in_words(dataset: PairedImages | HRImages) -> str:
    if isinstance(dataset, PairedImages):
        return f"{len(dataset):,} pairs"
    folders = ", ".join(f"{len(folder):,} in {folder.root}" for folder in dataset.folders)
    return f"{len(dataset):,} samples in an epoch, of HR images: {folders}"


def _with_checksum(path: Path) -> str:
    return f"{path}, {'its sha256 is right' if verify(path) else 'no sha256 is known for it'}"


def _sizes(train_step: TrainStep) -> str:
    networks = filter(None, (train_step.generator, train_step.discriminator))
    return ", ".join(
        f"{type(network).__name__} with {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"
        for network in networks
    )
