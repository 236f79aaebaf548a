"""A training run from its options to its end, or to the knowledge that it could start: what `train.py` does."""

import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256

import torch
from rich.console import Console
from torch import nn

from sed_sr.data.batches import DegradedPairs, batch_seed
from sed_sr.data.build import build_loader, build_training_pairs
from sed_sr.data.files import write_text
from sed_sr.data.image_folders import image_list
from sed_sr.data.loader import Loader, SampleStream
from sed_sr.models.build import RANDOM, pretrained_weights, records_graphs
from sed_sr.models.cuda_graph import CudaRecorder
from sed_sr.models.precision import resolved
from sed_sr.models.train_step import TrainStep
from sed_sr.options.errors import UserError
from sed_sr.options.schema import Options
from sed_sr.utils.runtime.distributed import World, joined_world
from sed_sr.utils.training.loop import TrainLoop
from sed_sr.utils.training.run_log import RunLog, SilentLog
from sed_sr.utils.training.setup import TrainingSetup, prepare
from sed_sr.utils.weights import checkpoint

DIGITS = 12  # of a digest, that a sentence shows


def run_training(
    read_options: Callable[[], Options], *, resume: str | None, only_check: bool, local_rank: int | None
) -> None:
    """Train; or look at everything that the run will need, take one step, and train nothing.

    Args:
        read_options: called once the processes of the run know each other, so that a mistake is told once.
        resume, local_rank: as the arguments of `train.py`.

    Raises:
        UserError: something that the run needs is wrong.
    """
    with joined_world(local_rank) as world:
        options = world.from_main(read_options)
        ready = prepare(options, resume=resume, thorough=only_check, world=world)
        if only_check:
            check(ready, world=world)
        else:
            train(ready, world=world)


def check(ready: TrainingSetup, *, world: World) -> None:
    """Take one step that counts for nothing, and show what was found by all processes."""
    options, checks = ready.options, ready.checks
    checks.share(world)
    if not checks.wrong:
        share_step(ready.train_step, world)
        compare_processes(ready, world)
        checks.look(f"memory, process {world.rank}", build_loop(ready, world=world, log=SilentLog()).dry_step)
        checks.share(world)
    Console(quiet=not world.main, highlight=False, soft_wrap=True).print(checks.table())
    with world.raise_together():
        if checks.wrong:
            raise UserError(f"{options.name} cannot start before what is marked WRONG above is mended")
    if world.main:
        print(f"{options.name} can start")


def train(ready: TrainingSetup, *, world: World) -> None:
    """Train, after all that was found to be in order."""
    options, start, folder = ready.options, ready.start, ready.folder
    with world.raise_together():
        ready.checks.settle()
    with world.raise_together():
        if world.main:
            folder.claim(in_place=start.in_place, damaged=start.damaged)
            write_text(folder.options, options.as_yaml())
            write_text(folder.training_set, image_list(ready.dataset.hr_folders))
    share_step(ready.train_step, world)
    compare_processes(ready, world)
    log = RunLog(folder, step=start.step, validated=start.validated) if world.main else SilentLog()
    if records_graphs(options, ready.device):
        ready.train_step.record(CudaRecorder, warn=log.warning)
    try:
        announce(log, ready, world=world)
        build_loop(ready, world=world, log=log).run()
    except KeyboardInterrupt:
        log.warning(f"interrupted after step {ready.train_step.step:,}; --resume auto goes on from the newest state")
        raise
    finally:
        log.close()


def share_step(train_step: TrainStep, world: World) -> None:
    """Let all processes take each step together, from the main process's networks and moments."""
    if world.size > 1:
        device = next(train_step.generator.parameters()).device
        state = world.share_tensors(train_step.state_dict(), device=device)
        if not world.main:
            train_step.load_state_dict(state)
        for frozen in _frozen(train_step):
            world.spread(frozen.state_dict().values())
    train_step.distribute(add_up=world.add_up, processes=world.size)


def compare_processes(ready: TrainingSetup, world: World) -> None:
    """See that all processes stand at the same place. Raises a UserError that names those that do not."""
    if world.size > 1:
        precision = resolved(ready.options.train.precision, ready.device)
        everything = [ready.train_step.state_dict(), *(network.state_dict() for network in _frozen(ready.train_step))]
        world.compare(
            {
                "PyTorch": torch.__version__,
                "the device": f"{ready.device.type} ({precision})",
                "the step": ready.train_step.step,
                "the position in the data": ready.start.samples,
                "the digest of the options": sha256(ready.options.as_yaml().encode()).hexdigest()[:DIGITS],
                "the digest of networks and moments": checkpoint.digest(everything)[:DIGITS],
            }
        )


def _frozen(train_step: TrainStep) -> list[nn.Module]:
    """The pretrained networks of a training step, which its state leaves out."""
    return [network for network in (train_step.extractor, train_step.perceptual) if network is not None]


def build_loop(ready: TrainingSetup, *, world: World, log: SilentLog) -> TrainLoop:
    """The loop, standing where the run goes on."""
    options, start, dataset = ready.options, ready.start, ready.dataset
    steps_left = max(0, options.train.total_steps - start.step)
    load = partial(build_loader, options, dataset, processes_here=world.local_size, device_type=ready.device.type)
    stream = partial(
        SampleStream,
        len(dataset),
        batch_size=options.dataloader.batch_size,
        rank=world.rank,
        world_size=world.size,
        seed=options.seed,
    )
    pairs = build_training_pairs(options, scale=ready.train_step.generator.scale)
    if pairs.mixes_batches and start.step > 0:
        with world.raise_together():
            refill_pool(pairs, ready, stream=stream, load=load, world=world, log=log)
    loop = TrainLoop(
        options=options,
        train_step=ready.train_step,
        batches=load(stream(first_sample=start.samples, batches=steps_left * options.train.accumulate_batches)),
        pairs=pairs,
        benchmarks=ready.benchmarks,
        metrics=ready.metrics,
        folder=ready.folder,
        log=log,
        world=world,
        device=ready.device,
    )
    if start.loop is not None:
        loop.load_state_dict(start.loop)
    return loop


def refill_pool(
    pairs: DegradedPairs,
    ready: TrainingSetup,
    *,
    stream: Callable[..., SampleStream],
    load: Callable[[list], Loader],
    world: World,
    log: SilentLog,
) -> None:
    """Make the pool of pairs as it was, from the images that its pairs were made of."""
    options, start, started_s = ready.options, ready.start, time.perf_counter()
    size, per_step = options.dataloader.batch_size, options.train.accumulate_batches
    # As many as the run has taken, if it was always as it is now.
    batches = min(start.step * per_step, start.samples // (size * world.size))
    before = stream(first_sample=start.samples - batches * size * world.size, batches=batches)

    def seed_of(batch: int) -> int:
        step, number = divmod(start.step * per_step - batches + batch, per_step)
        return batch_seed(options.seed, rank=world.rank, step=step, number=number + 1)

    made = pairs.refill(
        batch_size=size,
        batches=batches,
        load=lambda needed: load(list(before.keys(needed))),
        seed_of=seed_of,
        device=ready.device,
    )
    log.info(f"the pool of pairs is as it was: {made} batches made again in {time.perf_counter() - started_s:.2g} s")


def announce(log: SilentLog, ready: TrainingSetup, *, world: World) -> None:
    """What is about to happen, at the head of the log."""
    options = ready.options
    log.info(options.as_yaml().rstrip())
    for what, found in ready.checks.found.items():
        log.info(f"{what}: {found}")
    batch_size, batches = options.dataloader.batch_size, options.train.accumulate_batches
    processes = f"{world.size} process{'es' if world.size > 1 else ''}"
    log.info(
        f"{options.name}: {batch_size * batches * world.size} pairs in a step (batches of {batch_size}, {batches} a "
        f"step, {processes}), {resolved(options.train.precision, ready.device)} on {ready.device}"
    )
    for network, weights in pretrained_weights(options).items():
        if weights == RANDOM:
            log.warning(f"the {network} has random weights, as the options ask; its results mean nothing for the paper")
    if ready.start.step >= options.train.total_steps:
        log.info(f"nothing to do: {ready.start.step:,} of {options.train.total_steps:,} steps are done")
