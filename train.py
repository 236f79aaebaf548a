"""Train a x4 generator: PSNR-oriented, or against a discriminator that may be conditioned on semantics (SeD)."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from data.benchmarks import find_benchmark
from data.datasets import PairedImages, SampleStream, make_loader
from models.build import RANDOM, build_generator, build_train_step, pretrained_weights
from models.train_step import TrainStep
from options.schema import Options
from utils.arguments import option_parser, options_from
from utils.distributed import World, join_world
from utils.entry import run
from utils.errors import UserError
from utils.evaluate import build_metrics, metric_weights
from utils.files import write_text
from utils.generator_weights import load_into
from utils.resume import AUTO, Start, find_start
from utils.run_folder import RunFolder
from utils.run_log import RunLog, SilentLog
from utils.train_loop import TrainLoop
from utils.weights import locate


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__, folders=("data_root", "data_test_root", "out_root"))
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="generator weights in any released format to start from, or a training state to go on with; "
        "`auto`: the newest state of this run, or a new start where there is none",
    )
    # Launchers set LOCAL_RANK; torch.distributed.launch passes this as well, spelled by its age.
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    world = join_world(arguments.local_rank)
    try:
        with world.agree():
            options = options_from(arguments)
        train(options, resume=arguments.resume, world=world)
    finally:
        world.leave()
    return 0


def train(options: Options, *, resume: str | None, world: World) -> None:
    """Look at everything before anything is written, then train."""
    folder = RunFolder(options.paths.out_root / options.name)
    pretrained_root = options.paths.pretrained_root
    find = partial(locate, pretrained_root=pretrained_root)
    wanted = [*pretrained_weights(options).values(), resume, *metric_weights(options.validation.metrics)]
    weight_files = [name for name in wanted if name not in (RANDOM, AUTO, None)]
    with world.agree():
        device = world.device(options.device)
        generator = build_generator(options)
        dataset = build_dataset(options, scale=generator.scale)
        benchmarks = [
            find_benchmark(options.paths.data_test_root, name, scale=generator.scale)
            for name in options.validation.benchmarks
        ]
    with world.agree():
        if world.local_rank == 0:  # one process of each machine downloads what is missing
            fetch(weight_files, find)
    with world.agree():
        start = find_start(resume, options, folder, find(resume) if resume not in (None, AUTO) else None)
        if start.weights is not None:
            load_into(generator, start.weights, start.path)
        metrics = build_metrics(options.validation.metrics, pretrained_root=pretrained_root, device=device)
        train_step = build_train_step(options, generator=generator, device=device)
        if start.state is not None:
            train_step.load_state_dict(start.state["train_step"])
    with world.agree():
        if world.main:
            folder.claim(in_place=start.in_place)
            write_text(folder.options, options.as_yaml())
    train_step.distribute(partial(world.wrap, device=device))
    batches = make_loader(
        dataset,
        SampleStream(
            len(dataset),
            batch_size=options.dataloader.batch_size,
            rank=world.rank,
            world_size=world.size,
            seed=options.seed,
            first_sample=start.samples,
            batches=max(0, options.train.total_steps - start.step),
        ),
        num_workers=options.dataloader.num_workers,
        device_type=device.type,
    )
    log = RunLog(folder) if world.main else SilentLog()
    try:
        announce(log, options, start, world=world, train_step=train_step, pairs=len(dataset))
        TrainLoop(
            options=options,
            train_step=train_step,
            batches=batches,
            benchmarks=benchmarks,
            metrics=metrics,
            folder=folder,
            log=log,
            world=world,
            device=device,
            samples=start.samples,
        ).run()
    except KeyboardInterrupt:
        log.warning(f"interrupted after step {train_step.step:,}; --resume auto goes on from the newest state")
        raise
    finally:
        log.close()


def fetch(names: list[str], find: Callable[[str], Path]) -> None:
    """Find or download all of the files. Raises UserError that tells of all those that cannot be had."""
    problems = []
    for name in names:
        try:
            find(name)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def build_dataset(options: Options, *, scale: int) -> PairedImages:
    """The paired training set, its pairs checked."""
    return PairedImages(
        options.paths.data_root / options.dataset.hr,
        options.paths.data_root / options.dataset.lr,
        scale=scale,
        lr_patch_px=options.dataset.lr_patch_px,
        augment=options.dataset.augment,
        seed=options.seed,
    )


def announce(
    log: SilentLog, options: Options, start: Start, *, world: World, train_step: TrainStep, pairs: int
) -> None:
    """What is about to happen, at the head of the log."""
    log.info(options.as_yaml().rstrip())
    log.info(
        f"{options.name}: {pairs:,} pairs, {world.size} process{'es' if world.size > 1 else ''} with "
        f"{options.dataloader.batch_size} of them in a batch, {options.train.precision}"
    )
    for network in filter(None, (train_step.generator, train_step.discriminator)):
        parameters = list(network.parameters())
        millions = sum(parameter.numel() for parameter in parameters) / 1e6
        log.info(f"{type(network).__name__}: {millions:.2f} M parameters on {parameters[0].device}")
    for line in start.told:
        log.info(line)
    for network, weights in pretrained_weights(options).items():
        if weights == RANDOM:
            log.warning(f"the {network} has random weights, as the options ask; its results mean nothing for the paper")
    if start.step >= options.train.total_steps:
        log.info(f"nothing to do: {start.step:,} of {options.train.total_steps:,} steps are done")


if __name__ == "__main__":
    run(main)
