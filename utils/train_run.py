"""What `train.py` does: prepare a run, then train, or only check that it could start."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256

import torch
from rich.console import Console

from sed_sr.data.batches import DegradedPairs, batch_seed
from sed_sr.data.build import build_loader, build_training_pairs
from sed_sr.data.files import write_text
from sed_sr.data.image_folders import image_list
from sed_sr.data.loader import Loader, SampleStream
from sed_sr.models.build import records_graphs
from sed_sr.models.cuda_graph import CudaRecorder
from sed_sr.models.precision import resolved
from sed_sr.models.train_step import TrainStep
from sed_sr.options.errors import UserError
from sed_sr.options.schema import Options
from sed_sr.utils.runtime.distributed import World, joined_world
from sed_sr.utils.training.checklist import Checklist
from sed_sr.utils.training.frozen_weights import pretrained_weights
from sed_sr.utils.training.loggers import ExperimentLogger, TensorBoard
from sed_sr.utils.training.loop import TrainLoop
from sed_sr.utils.training.run_log import RunLog, SilentLog
from sed_sr.utils.training.setup import TrainingSetup, prepare
from sed_sr.utils.training.wandb_logger import Wandb
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.extractor_file import RANDOM

DIGITS = 12  # of a digest in a message


def run_training(
    read_options: Callable[[], Options], *, resume: str | None, only_check: bool, local_rank: int | None
) -> None:
    """Train; or check everything that the run needs, take one step, and write nothing but missing pretrained weights.

    Args:
        read_options: called on the main process after all processes have joined, so that a mistake is reported once.
        resume, local_rank: as the arguments of `train.py`.

    Raises:
        UserError: a check has failed, or training cannot continue.
    """
    with joined_world(local_rank) as world:
        options = world.from_main(read_options)
        checks = Checklist()
        setup = prepare(options, checks, resume=resume, thorough=only_check, world=world)
        if only_check:
            check(setup, checks, name=options.name, world=world)
        elif setup is None:
            with world.raise_together():
                checks.raise_if_failed()
        else:
            train(setup, checks.notes, world=world)


def check(setup: TrainingSetup | None, checks: Checklist, *, name: str, world: World) -> None:
    """Take one trial step if no check has failed so far, and print the results of all checks of all processes."""
    if setup is not None:
        synchronize(setup.train_step, world)
        check_synchronized(setup, world)
        checks.check(f"memory, process {world.rank}", build_loop(setup, world=world, log=SilentLog()).dry_step)
        checks.gather(world)
    Console(quiet=not world.main, highlight=False, soft_wrap=True).print(checks.table())
    with world.raise_together():
        if checks.failures:
            raise UserError(f"{name} cannot start: fix what is marked FAILED above")
    if world.main:
        print(f"{name} can start")


def train(setup: TrainingSetup, notes: dict[str, str], *, world: World) -> None:
    """Train.

    Args:
        notes: what the checks have found, for the log.
    """
    options, start, folder = setup.options, setup.start, setup.folder
    with world.raise_together():
        if world.main:
            folder.lock(in_place=start.in_place, damaged=start.damaged)
            write_text(folder.options, options.as_yaml())
            write_text(folder.training_set, image_list(setup.dataset.hr_folders))
    synchronize(setup.train_step, world)
    check_synchronized(setup, world)
    log = RunLog(folder, step=start.step, validated=start.validated) if world.main else SilentLog()
    if records_graphs(options, setup.device):
        setup.train_step.record(CudaRecorder, warn=log.warning)
    try:
        with world.raise_together():
            loggers = start_loggers(log, setup) if world.main else []
        for logger in loggers:
            log.add(logger)
        log_header(log, setup, notes, loggers, world=world)
        build_loop(setup, world=world, log=log).run()
    except KeyboardInterrupt:
        step = setup.train_step.step
        log.warning(f"interrupted after step {step:,}; --resume auto continues from the newest state")
        raise
    finally:
        log.close()


def synchronize(train_step: TrainStep, world: World) -> None:
    """Copy networks and optimisers of the main process to all others, which take each step together from now on."""
    if world.size > 1:
        device = next(train_step.generator.parameters()).device
        state = world.broadcast_tensors(train_step.state_dict(), device=device)
        if not world.main:
            train_step.load_state_dict(state)
        for frozen in train_step.frozen_networks:
            world.broadcast_into(frozen.state_dict().values())
    train_step.distribute(all_reduce=world.all_reduce, processes=world.size)


def check_synchronized(setup: TrainingSetup, world: World) -> None:
    """Raise a UserError that names the difference if the processes do not start from the same state."""
    if world.size > 1:
        precision = resolved(setup.options.train.precision, setup.device)
        states = [setup.train_step.state_dict(), *(net.state_dict() for net in setup.train_step.frozen_networks)]
        world.check_equal(
            {
                "PyTorch": torch.__version__,
                "the device": f"{setup.device.type} ({precision})",
                "the step": setup.train_step.step,
                "the position in the data": setup.start.samples,
                "the digest of the options": sha256(setup.options.as_yaml().encode()).hexdigest()[:DIGITS],
                "the digest of networks and optimisers": checkpoint.digest(states)[:DIGITS],
            }
        )


def build_loop(setup: TrainingSetup, *, world: World, log: SilentLog) -> TrainLoop:
    """The training loop in the state from which the run starts."""
    options, start, dataset = setup.options, setup.start, setup.dataset
    steps_left = max(0, options.train.total_steps - start.step)
    load = partial(build_loader, options, dataset, processes_here=world.local_size, device_type=setup.device.type)
    stream = partial(
        SampleStream,
        len(dataset),
        batch_size=setup.batches.size,
        rank=world.rank,
        world_size=world.size,
        seed=options.seed,
    )
    pairs = build_training_pairs(options, scale=setup.train_step.generator.scale)
    if isinstance(pairs, DegradedPairs) and pairs.mixes_batches and start.step > 0:
        with world.raise_together():
            refill_pool(pairs, setup, stream=stream, load=load, world=world, log=log)
    loop = TrainLoop(
        options=options,
        train_step=setup.train_step,
        batches=load(stream(first_sample=start.samples, batches=steps_left * setup.batches.per_step)),
        pairs=pairs,
        benchmarks=setup.benchmarks,
        metrics=setup.metrics,
        folder=setup.folder,
        log=log,
        world=world,
        device=setup.device,
    )
    if start.loop is not None:
        loop.load_state_dict(start.loop)
    return loop


def refill_pool(
    pairs: DegradedPairs,
    setup: TrainingSetup,
    *,
    stream: Callable[..., SampleStream],
    load: Callable[[list], Loader],
    world: World,
    log: SilentLog,
) -> None:
    """Restore the pool of degraded pairs by degrading the same images again."""
    options, start, started_s = setup.options, setup.start, time.perf_counter()
    size, per_step = setup.batches.size, setup.batches.per_step
    # All batches that the run has seen, provided that batch size and processes were always as they are now.
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
        device=setup.device,
    )
    log.info(f"the pool of pairs is restored from {made} batches in {time.perf_counter() - started_s:.2g} s")


def start_loggers(log: SilentLog, setup: TrainingSetup) -> list[ExperimentLogger]:
    """Start the experiment loggers that the options list."""
    options, folder, start = setup.options, setup.folder, setup.start
    loggers: list[ExperimentLogger] = []
    if "tensorboard" in options.logging:
        loggers.append(TensorBoard(folder.tensorboard, step=start.step))
    if "wandb" in options.logging:
        config = options.model_dump(mode="json")
        loggers.append(Wandb(folder, name=options.name, config=config, in_place=start.in_place, warn=log.warning))
    return loggers


def log_header(
    log: SilentLog,
    setup: TrainingSetup,
    notes: dict[str, str],
    loggers: Sequence[ExperimentLogger],
    *,
    world: World,
) -> None:
    """The first lines of the log: what is trained on what, and where the results are."""
    options, folder, device, start = setup.options, setup.folder, setup.device, setup.start
    train, batches = options.train, setup.batches
    log.info(f"run: {options.name} in {folder.root}, all options in {folder.options.name}")
    gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    processes = f"{world.size} process{'es' * (world.size > 1)}"
    log.info(f"device: {device}{gpu}, {resolved(train.precision, device)}, {processes}")
    for name, note in notes.items():
        if name not in ("device", "start", "run folder"):
            log.info(f"{name}: {note}")
    log.info(
        f"batch: {batches.total} pairs per step ({processes} x batch size {batches.size} x {batches.per_step} "
        "accumulated)"
    )
    validation = f"validation every {options.validation.every_steps:,}" if setup.benchmarks else "no validation"
    log.info(
        f"steps: {start.step:,} of {train.total_steps:,} done; {validation}, save every {train.save_every_steps:,}"
    )
    for message in start.messages:
        log.info(message)
    for logger in loggers:
        log.info(logger.about)
    for network, weights in pretrained_weights(options).items():
        if weights == RANDOM:
            log.warning(f"the {network} has random weights, as set in the options; results do not reproduce the paper")
    if start.step >= train.total_steps:
        log.info(f"nothing to do: {start.step:,} of {train.total_steps:,} steps are done")
