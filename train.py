"""Train a x4 generator: PSNR-oriented, or against a discriminator that may be conditioned on semantics (SeD)."""

import argparse
from functools import partial

from rich.console import Console

from data.datasets import SampleStream, make_loader
from models.build import RANDOM, build_training_pairs, pretrained_weights
from options.schema import Options
from utils.arguments import option_parser, options_from
from utils.distributed import World, joined_world
from utils.entry import run
from utils.errors import UserError
from utils.files import write_text
from utils.preflight import Checklist
from utils.prepare import Ready, prepare
from utils.run_log import RunLog, SilentLog
from utils.train_loop import TrainLoop


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__, folders=("data_root", "data_test_root", "out_root"))
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="generator weights in any released format to start from, or a training state to go on with; "
        "`auto`: the newest state of this run that is whole, or a new start where there is none",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="look at everything that the run will need, down to every image and one step, and train nothing",
    )
    # Launchers set LOCAL_RANK; torch.distributed.launch passes this as well, spelled by its age.
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    with joined_world(arguments.local_rank) as world:
        with world.agree():
            options = options_from(arguments)
        ready = prepare(options, resume=arguments.resume, thorough=arguments.check, world=world)
        if arguments.check:
            check(options, ready, world=world)
        else:
            train(options, ready, world=world)
    return 0


def check(options: Options, ready: Ready, *, world: World) -> None:
    """Take one step that counts for nothing, and show what was found by all processes."""
    checks = ready.checks
    share_mistakes(checks, world)
    if not checks.wrong:
        ready.train_step.distribute(wrap=partial(world.wrap, device=ready.device), add_up=world.add_up)
        checks.look(f"memory, process {world.rank}", build_loop(options, ready, world=world, log=SilentLog()).dry_step)
        share_mistakes(checks, world)
    Console(quiet=not world.main, highlight=False, soft_wrap=True).print(checks.table())
    with world.agree():
        if checks.wrong:
            raise UserError(f"{options.name} cannot start before what is marked WRONG above is mended")
    if world.main:
        print(f"{options.name} can start")


def share_mistakes(checks: Checklist, world: World) -> None:
    """Let every process know what the others have found."""
    for found, wrong in world.gather((checks.found, checks.wrong)):
        checks.found = {**found, **checks.found}
        checks.wrong = {**wrong, **checks.wrong}


def train(options: Options, ready: Ready, *, world: World) -> None:
    """Train, after all that was found to be in order."""
    start, folder = ready.start, ready.folder
    with world.agree():
        ready.checks.settle()
    with world.agree():
        if world.main:
            folder.claim(in_place=start.in_place, damaged=start.damaged)
            write_text(folder.options, options.as_yaml())
    ready.train_step.distribute(wrap=partial(world.wrap, device=ready.device), add_up=world.add_up)
    log = RunLog(folder, step=start.step, validated=start.validated) if world.main else SilentLog()
    try:
        announce(log, options, ready, world=world)
        build_loop(options, ready, world=world, log=log).run()
    except KeyboardInterrupt:
        log.warning(f"interrupted after step {ready.train_step.step:,}; --resume auto goes on from the newest state")
        raise
    finally:
        log.close()


def build_loop(options: Options, ready: Ready, *, world: World, log: SilentLog) -> TrainLoop:
    """The loop, standing where the run goes on."""
    start, dataset = ready.start, ready.dataset
    steps_left = max(0, options.train.total_steps - start.step)
    batches = make_loader(
        dataset,
        SampleStream(
            len(dataset),
            batch_size=options.dataloader.batch_size,
            rank=world.rank,
            world_size=world.size,
            seed=options.seed,
            first_sample=start.samples,
            batches=steps_left * options.train.accumulate_batches,
        ),
        num_workers=options.dataloader.num_workers,
        device_type=ready.device.type,
    )
    loop = TrainLoop(
        options=options,
        train_step=ready.train_step,
        batches=batches,
        pairs=build_training_pairs(options, scale=ready.train_step.generator.scale),
        benchmarks=ready.benchmarks,
        metrics=ready.metrics,
        folder=ready.folder,
        log=log,
        world=world,
        device=ready.device,
    )
    if start.state is not None:
        loop.load_state_dict(start.state["loop"])
    return loop


def announce(log: SilentLog, options: Options, ready: Ready, *, world: World) -> None:
    """What is about to happen, at the head of the log."""
    log.info(options.as_yaml().rstrip())
    for what, found in ready.checks.found.items():
        log.info(f"{what}: {found}")
    batch_size, batches = options.dataloader.batch_size, options.train.accumulate_batches
    processes = f"{world.size} process{'es' if world.size > 1 else ''}"
    log.info(
        f"{options.name}: {batch_size * batches * world.size} pairs in a step (batches of {batch_size}, {batches} a "
        f"step, {processes}), {options.train.precision}"
    )
    for network, weights in pretrained_weights(options).items():
        if weights == RANDOM:
            log.warning(f"the {network} has random weights, as the options ask; its results mean nothing for the paper")
    if ready.start.step >= options.train.total_steps:
        log.info(f"nothing to do: {ready.start.step:,} of {options.train.total_steps:,} steps are done")


if __name__ == "__main__":
    run(main)
