"""Score generators on benchmarks, side by side, or upscale images.

The exit code is 1 when an image could not be upscaled or scored. The others are; the tables tell how many.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from sed_sr.data.benchmarks import Benchmark, find_benchmark, find_inputs
from sed_sr.options.arguments import option_parser, options_from
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override
from sed_sr.options.schema import Options
from sed_sr.utils.evaluation.candidates import SCALE, Contestant, Entry, build_contestants, find_weights
from sed_sr.utils.evaluation.evaluate import evaluate
from sed_sr.utils.evaluation.metrics import Metric, build_metrics
from sed_sr.utils.evaluation.paper_scores import paper_row
from sed_sr.utils.evaluation.results import Result
from sed_sr.utils.evaluation.upscaler import Upscaler
from sed_sr.utils.report import output_folder
from sed_sr.utils.report.html_page import NO_EXTRAS, Extras, write_report
from sed_sr.utils.report.terminal import terminal_tables
from sed_sr.utils.runtime.distributed import World, joined_world
from sed_sr.utils.visualization.discriminator_file import open_judge
from sed_sr.utils.visualization.pictures import report_extras

# Flags that override the option of the same name in `test`.
FLAGS = ("weights", "benchmarks", "metrics", "precision", "tile_px", "batch_size", "self_ensemble")
# Weights tell what network they are: without an option file, all but `generator` and `name` has its default.
NO_OPTION_FILE = {"name": "test", "generator": {"type": "rrdb"}, "discriminator": None, "losses": {"gan": None}}


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__, folders=("data_test_root",), opt_required=False)
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="[LABEL=]FILE",
        help="generator weights in any released format, or `bicubic`; several are compared (test.weights)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--benchmarks", nargs="+", metavar="NAME", help="names, or folders (test.benchmarks)")
    what.add_argument("--input", nargs="+", type=Path, metavar="PATH", help="LR images, or folders of them, to upscale")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="psnr, ssim, lpips, lpips-vgg, or any of pyiqa's, such as dists, niqe, musiq (test.metrics)",
    )
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="arithmetic (test.precision)")
    parser.add_argument(
        "--tile_px", type=int, metavar="N", help="side of LR tiles, a multiple of 8, from 64 on (test.tile_px)"
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="images of one size at once (test.batch_size)")
    parser.add_argument("--self_ensemble", action="store_true", default=None, help="x8 (test.self_ensemble)")
    parser.add_argument(
        "--weights_d",
        type=Path,
        metavar="STATE",
        help="training state whose discriminator is looked at in the report: semantics, attention, real or fake",
    )
    parser.add_argument("--output_path", type=Path, metavar="FOLDER", help="for all that is made (results/<name>)")
    return parser.parse_args()


def flag_override(arguments: argparse.Namespace, name: str) -> Override:
    given = getattr(arguments, name)
    if isinstance(given, list):
        return Override(f"test.{name}", tuple(given), f"--{name} {' '.join(given)}")
    return Override(f"test.{name}", given, f"--{name}" if given is True else f"--{name} {given}")


def main() -> int:
    arguments = parse_arguments()
    overrides = [flag_override(arguments, name) for name in FLAGS if getattr(arguments, name) is not None]
    with joined_world() as world:
        options = world.from_main(lambda: options_from(arguments, *overrides, default=NO_OPTION_FILE))
        # Everything is looked at before anything is upscaled.
        plan = prepare(options, arguments, world)
        console = Console(quiet=not world.main, highlight=False, soft_wrap=True)
        for contestant in plan.contestants:
            console.print(f"{contestant.label}: {contestant.about}", markup=False)
        if options.test.metrics is None and plan.metrics and "lpips" not in plan.metrics:
            console.print("LPIPS is left out: its backbone is not there and could not be downloaded")
        results = [compete(contestant, plan, options, world, console) for contestant in plan.contestants]
        for table in terminal_tables(results, plan.metrics):
            console.print(table)
        # The tables are printed by now, and the scores written before the report, for which the disk may be too full.
        with world.raise_together():
            if world.main:
                settings = options.test.model_dump(mode="json", include={"precision", "tile_px", "self_ensemble"})
                output_folder.write_scores(plan.output, results, metrics=plan.metrics, settings=settings)
                write_report(
                    plan.output / output_folder.REPORT,
                    results,
                    benchmarks=plan.benchmarks,
                    metrics=plan.metrics,
                    sr_root=plan.output,
                    title=", ".join(result.label for result in results),
                    extras=plan.extras,
                )
        return tell(results, plan.output, console)


@dataclass(frozen=True)
class Plan:
    """What upscales what, how that is scored, and where it goes."""

    contestants: list[Contestant]
    benchmarks: list[Benchmark]
    metrics: dict[str, Metric]
    device: torch.device
    output: Path
    extras: Extras  # further pictures for the report, which the main process draws


def prepare(options: Options, arguments: argparse.Namespace, world: World) -> Plan:
    """Find, load and check all that the options and arguments name. Raises UserError where something is wrong."""
    chosen, pretrained_root = options.test, options.paths.pretrained_root
    with world.raise_together():
        device = world.device(options.device)
        entries = [Entry.parse(text) for text in chosen.weights]
        if not entries:
            raise UserError("no weights were given; give --weights FILE, --weights bicubic, or test.weights")
        paper_row(chosen.paper_row)  # a row that does not exist is told now, not after the last image
    benchmarks = world.from_main(lambda: find_benchmarks(options, arguments.input))
    # One process of each machine downloads what is missing, before the others look for it.
    with world.raise_together():
        if world.local_rank == 0:
            find_weights(entries, pretrained_root=pretrained_root)
    with world.raise_together():
        upscaler = partial(
            Upscaler,
            device=device,
            precision=chosen.precision,
            tile_px=chosen.tile_px,
            self_ensemble=chosen.self_ensemble,
        )
        contestants = build_contestants(
            entries,
            pretrained_root=pretrained_root,
            generator=options.generator.model_dump() if arguments.opt else None,
            paper_row=chosen.paper_row,
            compare=world.local_rank == 0,
            upscaler=lambda network: upscaler(network.to(device, memory_format=torch.channels_last)),
        )
        output = arguments.output_path or Path("results") / (
            options.name if arguments.opt else "_vs_".join(contestant.label for contestant in contestants)
        )
        sources = {contestant.label: contestant.source for contestant in contestants}
        if world.main:
            output_folder.refuse_loss(output, sources, benchmarks)
    scored = any(benchmark.has_ground_truth for benchmark in benchmarks)
    extras = NO_EXTRAS
    with world.raise_together():
        if arguments.weights_d is not None and not scored:
            raise UserError("--weights_d shows a discriminator images with ground truth; none that was given has one")
        if arguments.weights_d is not None and world.main:
            judge = open_judge(arguments.weights_d, device=device, pretrained_root=pretrained_root)
            extras = report_extras(judge, [contestant.label for contestant in contestants])
    # A metric that was asked for by name may be one that needs no ground truth.
    names = chosen.metrics if chosen.metrics is not None or scored else ()
    for downloads in (True, False):  # as above
        with world.raise_together():
            if (world.local_rank == 0) is downloads:
                metrics = build_metrics(names, pretrained_root=pretrained_root, device=device, compare=downloads)
    with world.raise_together():
        useless = [name for name, metric in metrics.items() if metric.needs_ground_truth]
        if useless and not scored:
            raise UserError(f"{', '.join(useless)} cannot be computed: no image that was given has a ground truth")
        if world.main:
            output_folder.claim(output, sources)
    return Plan(contestants, benchmarks, metrics, device, output, extras)


def find_benchmarks(options: Options, inputs: list[Path] | None) -> list[Benchmark]:
    """What is to be upscaled. Raises UserError where two benchmarks would be written into one folder."""
    root = options.paths.data_test_root
    if inputs:
        benchmarks = find_inputs(inputs)
    else:
        benchmarks = [find_benchmark(root, name, scale=SCALE) for name in options.test.benchmarks]
    name, uses = Counter(benchmark.name for benchmark in benchmarks).most_common(1)[0]
    if uses > 1:
        raise UserError(f"{uses} of the benchmarks are called {name}; score them one after the other")
    return benchmarks


def compete(contestant: Contestant, plan: Plan, options: Options, world: World, console: Console) -> Result:
    """Upscale and score all benchmarks with one of those compared, behind a progress bar."""
    scores = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for benchmark in plan.benchmarks:
            share = benchmark.images[world.rank :: world.size]
            task = bar.add_task(f"{escape(contestant.label)}, {escape(benchmark.name)}", total=len(share))
            scores[benchmark.name] = evaluate(
                contestant.upscale,
                benchmark,
                metrics=plan.metrics,
                device=plan.device,
                world=world,
                batch_size=options.test.batch_size,
                output=plan.output / contestant.label / benchmark.name,
                on_image=lambda *_, task=task: bar.advance(task),
            )
    return Result(contestant.label, contestant.source, contestant.about, contestant.paper_row, scores)


def tell(results: list[Result], output: Path, console: Console) -> int:
    """Say what the tables do not; returns the exit code, 1 when an image could not be upscaled or scored."""
    upscaled, failed = 0, False
    for result in results:
        for name, scores in result.benchmarks.items():
            upscaled += len(scores.images)
            failed = failed or bool(scores.failures)
            for note in scores.notes:
                console.print(f"{result.label}, {name}: {note}", markup=False, style="yellow")
            for failure in scores.failures:
                console.print(f"failed: {result.label}, {name}: {failure}", markup=False, style="red")
    images = "1 image" if upscaled == 1 else f"{upscaled} images"
    console.print(f"{images} upscaled; see {output / output_folder.REPORT}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
