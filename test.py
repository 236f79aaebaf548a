"""Score a generator on benchmarks, or upscale folders of images."""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from data.benchmarks import Benchmark, find_benchmark
from models.build import build_generator
from options.schema import Options, Override
from utils import checkpoint
from utils.arguments import option_parser, options_from
from utils.distributed import World, joined_world
from utils.entry import run
from utils.errors import UserError
from utils.evaluate import LPIPS_BACKBONE, Upscale, bicubic, build_metrics, by_network, evaluate
from utils.files import write_text
from utils.generator_weights import generator_weights, load_into
from utils.paper_scores import paper_row
from utils.score_table import as_json, score_table
from utils.weights import locate

BICUBIC = "bicubic"


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__, folders=("data_test_root",))
    parser.add_argument("--output_path", metavar="FOLDER", help="for SR images and results.json (results/<name>)")
    parser.add_argument("--weights", metavar="FILE", help="generator weights, or `bicubic` (test.weights)")
    parser.add_argument("--benchmarks", nargs="+", metavar="NAME", help="names, or folders (test.benchmarks)")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="among psnr, ssim, lpips (test.metrics)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    flags = {"weights": arguments.weights, "benchmarks": arguments.benchmarks, "metrics": arguments.metrics}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items() if value}
    with joined_world() as world:
        with world.agree():
            options = options_from(
                arguments, *(Override(f"test.{name}", value, f"--{name} {value}") for name, value in given.items())
            )
        return test(options, output=Path(arguments.output_path or f"results/{options.name}"), world=world)


def test(options: Options, *, output: Path, world: World) -> int:
    """Look at everything before anything is upscaled; then upscale, score and report.

    Returns:
        The exit code: 1 when some images could not be read, upscaled or scored, else 0.
    """
    with world.agree():
        device = world.device(options.device)
        generator = build_generator(options)
        benchmarks = find_benchmarks(options, output, scale=generator.scale)
        row = BICUBIC if options.test.weights == BICUBIC else options.test.paper_row
        paper_row(row)  # a row that does not exist is told now, not after the last image
    scored = any(benchmark.has_ground_truth for benchmark in benchmarks)
    names = options.test.metrics if scored else ()
    prepare = partial(build_metrics, names, pretrained_root=options.paths.pretrained_root, device=device)
    # One process of each machine downloads what is missing, before the others look for it.
    with world.agree():
        if world.local_rank == 0:
            find_weights(options)
    with world.agree():
        upscale, kind = build_upscale(options, generator, device)
    with world.agree():
        if world.local_rank == 0:
            prepare()
    with world.agree():
        metrics = prepare()
        claim(output, options)
    console = Console(quiet=not world.main, highlight=False, soft_wrap=True)
    console.print(f"{options.test.weights}: {kind}", markup=False)
    if names is None and "lpips" not in metrics:
        console.print(f"LPIPS is left out: its backbone {LPIPS_BACKBONE} is not there and could not be downloaded")
    scores = {}
    for benchmark in benchmarks:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(benchmark.name, total=len(benchmark.images[world.rank :: world.size]))
            scores[benchmark.name] = evaluate(
                upscale,
                benchmark,
                metrics=metrics,
                device=device,
                world=world,
                output=output / benchmark.name,
                on_image=lambda *_, bar=bar, task=task: bar.advance(task),
            )
    with world.agree():
        if world.main:
            about = {"name": options.name, "weights": options.test.weights, "weights_kind": kind}
            write_text(output / "results.json", json.dumps({**about, "benchmarks": as_json(scores)}, indent=2) + "\n")
    if any(benchmark.mean for benchmark in scores.values()):
        console.print(score_table(scores, row))
    for name, benchmark in scores.items():
        for note in benchmark.notes:
            console.print(f"{name}: {note}", markup=False, style="yellow")
    failures = [failure for benchmark in scores.values() for failure in benchmark.failures]
    for failure in failures:
        console.print(f"failed: {failure}", markup=False, style="red")
    upscaled = sum(len(benchmark.images) for benchmark in scores.values())
    console.print(f"{upscaled} images upscaled; they and results.json are in {output}", markup=False)
    return 1 if failures else 0


def find_benchmarks(options: Options, output: Path, *, scale: int) -> list[Benchmark]:
    """The benchmarks of the options. Raises UserError where SR images would take the place of others."""
    root = options.paths.data_test_root
    benchmarks = [find_benchmark(root, name, scale=scale) for name in options.test.benchmarks]
    names = [benchmark.name for benchmark in benchmarks]
    for benchmark in benchmarks:
        folder = (output / benchmark.name).resolve()
        if names.count(benchmark.name) > 1:
            raise UserError(f"two of the benchmarks are called {benchmark.name}; score them one after the other")
        if any(folder == path.resolve().parent for image in benchmark.images for path in (image.lr, image.hr) if path):
            raise UserError(
                f"SR images would be written into {folder}, where {benchmark.name}'s own are; "
                "give another --output_path"
            )
    return benchmarks


def claim(output: Path, options: Options) -> None:
    """Make the folder of results. Raises UserError where it cannot be made, or holds those of other weights."""
    results = output / "results.json"
    try:
        output.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(results.read_text())["weights"] if results.exists() else options.test.weights
    except OSError as error:
        raise UserError(f"the folder of results {output} cannot be used ({error.strerror})") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{results} is not a file of results; give another --output_path") from None
    if earlier != options.test.weights:
        raise UserError(f"{output} holds the results of {earlier}; give another --output_path")


def find_weights(options: Options) -> Path | None:
    """The generator's weights; None for bicubic interpolation."""
    if options.test.weights is None:
        raise UserError("no weights were given; give --weights FILE, --weights bicubic, or test.weights in the options")
    if options.test.weights == BICUBIC:
        return None
    return locate(options.test.weights, pretrained_root=options.paths.pretrained_root)


def build_upscale(options: Options, generator: nn.Module, device: torch.device) -> tuple[Upscale, str]:
    """What upscales, and what it is in words."""
    path = find_weights(options)
    if path is None:
        return bicubic(generator.scale), "MATLAB's interpolation"
    weights = generator_weights(checkpoint.load(path), path)
    load_into(generator, weights, path)
    return by_network(generator.to(device, memory_format=torch.channels_last), device), weights.kind


if __name__ == "__main__":
    run(main)
