"""Build everything that a training run needs from its options, and check all of it before anything is written."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sed_sr.data.benchmarks import Benchmark
from sed_sr.data.datasets import TrainingSet
from sed_sr.models.build import build_generator, build_train_step
from sed_sr.models.train_step import TrainStep
from sed_sr.options.schema import Options
from sed_sr.utils.evaluation.evaluate import check_best_by
from sed_sr.utils.evaluation.metrics import Metric, build_metrics
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import disable_malloc_trim
from sed_sr.utils.training.batch_options import batches_of, measure_batch_size, with_batches
from sed_sr.utils.training.batch_size import Batches, GivenBatches, resolve_auto, resolve_batches
from sed_sr.utils.training.checklist import Checklist, check_disk
from sed_sr.utils.training.found_files import FoundFiles, find_files
from sed_sr.utils.training.frozen_weights import FrozenStates, load_frozen_states
from sed_sr.utils.training.resume import Start
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.discriminator_weights import discriminator_weights, load_shared
from sed_sr.utils.weights.formats import load_into


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
        found = find_files(options, checks, folder, resume=resume, thorough=thorough, processes=world.size)
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
        options, generator=generator, device=device, extractor_state=states.extractor, loss_states=states.losses
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


def _format_networks(train_step: TrainStep) -> str:
    networks: dict[str, nn.Module] = {train_step.generator.about: train_step.generator}
    if train_step.discriminator is not None:
        networks[type(train_step.discriminator).__name__] = train_step.discriminator
    return ", ".join(
        f"{name} with {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"
        for name, network in networks.items()
    )
