"""From options to everything that a run needs, looked at before anything is written."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from data.benchmarks import Benchmark, find_benchmark
from data.datasets import BATCHES_AHEAD, HRImages, PairedImages
from data.image_folders import check_readable
from data.pair_content import check_content
from models.build import RANDOM, build_generator, build_train_step, build_training_pairs, pretrained_weights
from models.train_step import TrainStep
from options.schema import Options
from utils.batch_size import AUTO, largest_batch_size
from utils.distributed import World
from utils.errors import UserError
from utils.generator_weights import load_into
from utils.memory import free_bytes
from utils.metrics import Metric, build_metrics, metric_weights
from utils.preflight import Checklist, check_disk
from utils.resume import Start, file_to_start_from, find_start
from utils.run_folder import RunFolder
from utils.weights import locate, verify

COMPARED_PAIRS = 16  # LR with HR downscaled, before every run; well below a second
COMPARED_PAIRS_THOROUGHLY = 256


@dataclass
class Ready:
    """What a run consists of; None in place of what could not be had, of which `checks` tells."""

    options: Options
    folder: RunFolder
    checks: Checklist
    device: torch.device | None
    dataset: PairedImages | HRImages | None
    benchmarks: list[Benchmark | None]
    start: Start | None = None
    metrics: dict[str, Metric] | None = None
    train_step: TrainStep | None = None


def prepare(options: Options, *, resume: str | None, thorough: bool, world: World) -> Ready:
    """Look at everything before anything is written; `thorough` looks at every image."""
    paths, checks, folder = options.paths, Checklist(), RunFolder(options.paths.out_root / options.name)
    find = partial(locate, pretrained_root=paths.pretrained_root)
    with world.agree():
        generator, pretrained = build_generator(options), list(pretrained_weights(options).values())
    device = checks.look("device", partial(world.device, options.device))
    dataset = checks.look("training set", partial(_build_dataset, options, scale=generator.scale), _in_words)
    if dataset is None:
        checks.left.append("content of the images")
    elif world.main:
        _look_into(dataset, checks, seed=options.seed, thorough=thorough)
    benchmarks = [
        checks.look(
            f"benchmark {name}",
            partial(find_benchmark, paths.data_test_root, name, scale=generator.scale),
            lambda benchmark: f"{len(benchmark.images)} images",
        )
        for name in options.validation.benchmarks
    ]
    ready = Ready(options, folder, checks, device, dataset, benchmarks)

    given = file_to_start_from(resume, options, folder)
    wanted = [*pretrained, given, *metric_weights(options.validation.metrics)]
    if world.local_rank == 0:  # one process of each machine downloads what is missing
        for name in wanted:
            if name not in (RANDOM, None):
                checks.look(name, partial(find, name), _with_checksum if thorough else str)
    world.gather(None)  # the others wait for it
    if given not in checks.wrong:
        ready.start = checks.look(
            "start",
            lambda: find_start(
                resume, options, folder, path=find(given) if given is not None else None, processes=world.size
            ),
            lambda start: "\n".join(start.told),
        )
    if ready.start is not None:
        checks.look("run folder", partial(folder.check, in_place=ready.start.in_place), lambda _: str(folder.root))
    if not checks.wrong:
        _assemble(ready, options, generator, world)
    if options.dataloader.batch_size == AUTO:
        _settle_batch_size(ready, world)
    if checks.wrong:
        checks.left += [what for what in ("scores", "networks", "disk", "memory") if what not in checks.found]
    return ready


def _assemble(ready: Ready, options: Options, generator: nn.Module, world: World) -> None:
    """Build what trains, with the weights or the state that it starts from."""
    checks, start = ready.checks, ready.start
    build_metric = partial(build_metrics, options.validation.metrics, pretrained_root=options.paths.pretrained_root)
    ready.metrics = checks.look("scores", partial(build_metric, device=ready.device), ", ".join)

    def build() -> TrainStep:
        if start.weights is not None:
            load_into(generator, start.weights, start.path)
        train_step = build_train_step(options, generator=generator, device=ready.device)
        if start.state is not None:
            train_step.load_state_dict(start.state["train_step"])
        return train_step

    ready.train_step = checks.look("networks", build, _sizes)
    if ready.train_step is not None and world.main:
        steps_left = max(0, options.train.total_steps - start.step)
        check = partial(check_disk, options, ready.folder, ready.train_step, ready.benchmarks)
        checks.look("disk", partial(check, steps_left=steps_left, processes=world.size))


def _settle_batch_size(ready: Ready, world: World) -> None:
    """Put a number in place of `auto`: that of the run that goes on, or what fits on every process."""
    options, state = ready.options, ready.start and ready.start.state
    size = None
    if state is not None:
        size, why = state["options"]["dataloader"]["batch_size"], "as before"
    elif ready.train_step is not None:
        size = ready.checks.look("batch size", partial(_largest_batch_size, ready, world))
        why = f"the largest that fits, of {len(ready.dataset):,} images"
    sizes = world.gather(size)
    if None in sizes:
        return  # something is wrong there, and was noted
    ready.checks.found["batch size"] = f"{min(sizes)}, {why}"
    loader = options.dataloader.model_copy(update={"batch_size": min(sizes)})
    ready.options = options.model_copy(update={"dataloader": loader})


def _largest_batch_size(ready: Ready, world: World) -> int:
    options, device, sample = ready.options, ready.device, ready.dataset[0, 0]
    on_cpu = device.type == "cpu"  # where the processes share the memory among them, and with the batches that wait
    batches = options.dataloader.num_workers * BATCHES_AHEAD + 1
    return largest_batch_size(
        ready.train_step,
        build_training_pairs(options, scale=ready.train_step.generator.scale),
        sample,
        most=max(1, len(ready.dataset) // world.size),
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


def _build_dataset(options: Options, *, scale: int) -> PairedImages | HRImages:
    """The training set, its images checked from their headers."""
    chosen = options.dataset
    hr_roots = {options.paths.data_root / name: weight for name, weight in chosen.hr.items()}
    if len(hr_roots) < len(chosen.hr):
        raise UserError(f"dataset.hr names a folder twice: {', '.join(chosen.hr)}")
    random = {"augment": chosen.augment, "seed": options.seed}
    if options.degradation is not None:
        return HRImages(hr_roots, hr_px=options.degradation.hr_px, **random)
    (hr_root,) = hr_roots
    lr_root = options.paths.data_root / chosen.lr
    return PairedImages(hr_root, lr_root, scale=scale, lr_patch_px=chosen.lr_patch_px, **random)


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
