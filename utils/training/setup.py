"""Build everything that a training run needs from its options, and check all of it before anything is written."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sed_sr.data.benchmarks import Benchmark, find_benchmark
from sed_sr.data.build import build_dataset
from sed_sr.data.datasets import HRImages, PairedImages
from sed_sr.data.image_folders import image_list
from sed_sr.models.build import build_generator, build_train_step
from sed_sr.models.train_step import TrainStep
from sed_sr.options.schema import Options
from sed_sr.utils.evaluation.evaluate import check_best_by
from sed_sr.utils.evaluation.metrics import Metric, build_metrics, metric_weights
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import disable_malloc_trim
from sed_sr.utils.training.batch_options import batches_of, measure_batch_size, with_batches
from sed_sr.utils.training.batch_size import AUTO, resolve_auto, resolve_batches
from sed_sr.utils.training.checklist import Checklist, check_disk
from sed_sr.utils.training.frozen_weights import FrozenStates, load_frozen_states, pretrained_weights
from sed_sr.utils.training.image_checks import check_training_images, format_dataset
from sed_sr.utils.training.resume import Start, file_to_start_from, find_start, with_changed_images
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.weights.extractor_file import RANDOM
from sed_sr.utils.weights.formats import load_into
from sed_sr.utils.weights.pretrained import locate, verify


@dataclass
class TrainingSetup:
    """Everything that a training run consists of. What could not be built is None, and `checks` has the reason."""

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
    """Find the data and the weights, build the networks, and check all of it. Nothing is written.

    Only the main process lists folders, opens images, reads weights and decides what the run starts from. It shares the
    results with the other processes. They build their networks with random weights, which the main process's replace
    later (`utils.train_run.synchronize`).

    Args:
        resume: the argument of `train.py`.
        thorough: decode every image.
    """
    with world.raise_together():
        options = with_batches(options, resolve_batches(batches_of(options), processes=world.size))
        generator = build_generator(options)
    checks, folder = Checklist(), RunFolder(options.paths.out_root / options.name)
    setup = TrainingSetup(options, folder, checks, checks.check("device", partial(world.device, options.device)))
    start = None
    if world.main:
        _find_images(setup, scale=generator.scale, thorough=thorough)
        start = _find_start(setup, resume, thorough=thorough, processes=world.size)
    # Without the tensors of `start`, which the other processes receive with those of the training step.
    found = (setup.dataset, setup.benchmarks, start.without_tensors() if start is not None else None)
    setup.dataset, setup.benchmarks, setup.start = world.broadcast(found)
    checks.gather(world)
    if not checks.failures:
        _build_metrics(setup, world)
        _build_networks(setup, start, generator, world)
        checks.gather(world)
    if checks.failures:
        checks.not_checked += [name for name in ("scores", "networks", "disk", "memory") if name not in checks.notes]
    return setup


def _find_images(setup: TrainingSetup, *, scale: int, thorough: bool) -> None:
    """Find the training set and the benchmarks."""
    options, checks = setup.options, setup.checks
    setup.dataset = checks.check("training set", partial(build_dataset, options, scale=scale), format_dataset)
    if setup.dataset is None:
        checks.not_checked.append("content of the images")
    else:
        check_training_images(setup.dataset, checks, seed=options.seed, thorough=thorough)
    setup.benchmarks = [
        checks.check(
            f"benchmark {name}",
            partial(find_benchmark, options.paths.data_test_root, name, scale=scale),
            lambda benchmark: f"{len(benchmark.images)} images",
        )
        for name in options.validation.benchmarks
    ]


def _find_start(setup: TrainingSetup, resume: str | None, *, thorough: bool, processes: int) -> Start | None:
    """Find the state or the weights that the run starts from, and download missing pretrained weights."""
    options, checks, folder = setup.options, setup.checks, setup.folder
    find = partial(locate, pretrained_root=options.paths.pretrained_root)
    given = file_to_start_from(resume, options, folder)
    for name in (*pretrained_weights(options).values(), given, *metric_weights(options.validation.metrics)):
        if name not in (RANDOM, None):
            checks.check(name, partial(find, name), _format_checksum if thorough else str)
    if given in checks.failures:
        return None

    def start() -> Start:
        path = find(given) if given is not None else None
        found = find_start(resume, options, folder, path=path, processes=processes)
        return found if setup.dataset is None else with_changed_images(found, image_list(setup.dataset.hr_folders))

    found = checks.check("start", start, lambda start: "\n".join(start.messages))
    if found is not None:
        checks.check("run folder", partial(folder.check, in_place=found.in_place), lambda _: str(folder.root))
    return found


def _build_metrics(setup: TrainingSetup, world: World) -> None:
    """Build the metrics, first on one process of each machine, which downloads and verifies their weights for all."""
    build = partial(
        build_metrics,
        setup.options.validation.metrics,
        pretrained_root=setup.options.paths.pretrained_root,
        device=setup.device,
        check_hash=world.local_rank == 0,
    )
    for first in (True, False):
        if (world.local_rank == 0) is first:
            setup.metrics = setup.checks.check("scores", build, ", ".join)
        world.gather(None)  # a barrier


def _build_networks(setup: TrainingSetup, start: Start | None, generator: nn.Module, world: World) -> None:
    """Build the training step, and load the weights or the state that the run starts from.

    Args:
        start: on the main process, with its tensors.
    """
    options, checks = setup.options, setup.checks
    best_by = options.validation.best_by
    if best_by is not None and setup.metrics is not None and world.main:
        check = partial(check_best_by, setup.metrics[best_by], setup.benchmarks[0], scale=generator.scale)
        checks.check("best weights", check)

    def build() -> TrainStep:
        if world.main and start.weights is not None:
            load_into(generator, start.weights, start.path)
        if setup.device.type == "cpu":
            disable_malloc_trim()
        states = load_frozen_states(options) if world.main else FrozenStates()
        train_step = build_train_step(
            options, generator=generator, device=setup.device, extractor_state=states.extractor, vgg_state=states.vgg
        )
        if world.main and start.train_step is not None:
            train_step.load_state_dict(start.train_step)
        return train_step

    setup.train_step = checks.check("networks", build, _format_networks)
    if options.dataloader.batch_size == AUTO:
        _resolve_batch_size(setup, world)
    if setup.train_step is not None and world.main:
        steps_left = max(0, options.train.total_steps - setup.start.step)
        check = partial(check_disk, options, setup.folder, setup.train_step, setup.benchmarks)
        checks.check("disk", partial(check, steps_left=steps_left))


def _resolve_batch_size(setup: TrainingSetup, world: World) -> None:
    """Replace the batch size `auto` by that of the resumed run, or by the largest that fits on every process."""
    options, size, reason = setup.options, setup.start.batch_size, "as before"
    if size is None and setup.train_step is not None:
        measure = partial(
            measure_batch_size,
            options,
            setup.train_step,
            setup.dataset,
            device=setup.device,
            world=world,
        )
        size = setup.checks.check("batch size", measure)
        reason = f"the largest that fits, of {len(setup.dataset):,} images"
    sizes = world.gather(size)
    if None in sizes:
        return  # a process failed, and `checks` has the reason
    batches = resolve_auto(batches_of(options), min(sizes), processes=world.size)
    setup.options = with_batches(options, batches)
    setup.checks.notes["batch size"] = f"{batches.size}, {reason}"
    if setup.train_step is not None:
        setup.train_step.batches_per_step = batches.per_step


def _format_checksum(path: Path) -> str:
    return f"{path}, {'its sha256 is right' if verify(path) else 'no sha256 is known for it'}"


def _format_networks(train_step: TrainStep) -> str:
    networks = filter(None, (train_step.generator, train_step.discriminator))
    return ", ".join(
        f"{type(network).__name__} with {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"
        for network in networks
    )
