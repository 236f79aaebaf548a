"""Upscaling and scoring, from the options to the report: what `test.py` does."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from tqdm import tqdm

from sed_sr.data.benchmarks import Benchmark, find_benchmark
from sed_sr.models.generator import Generator
from sed_sr.options.errors import UserError
from sed_sr.options.schema import Options
from sed_sr.utils.evaluation.candidates import Candidate, Entry, find_weights, load_candidates
from sed_sr.utils.evaluation.evaluate import evaluate
from sed_sr.utils.evaluation.metrics import Metric, build_metrics
from sed_sr.utils.evaluation.paper_scores import paper_row
from sed_sr.utils.evaluation.results import Result
from sed_sr.utils.evaluation.upscaler import Upscaler
from sed_sr.utils.report.data_files import write_scores
from sed_sr.utils.report.extra_pictures import NO_EXTRA_PICTURES, ExtraPictures, discriminator_extra_pictures
from sed_sr.utils.report.html_page import write_report
from sed_sr.utils.report.output_folder import REPORT, check_formats, check_output_folder, create_output_folder
from sed_sr.utils.report.terminal import terminal_tables
from sed_sr.utils.runtime.distributed import World, joined_world
from sed_sr.utils.visualization.discriminator_file import load_discriminator
from sed_sr.utils.weights.pretrained import locate


@dataclass(frozen=True)
class TestSetup:
    """Everything that a test run needs, loaded and checked."""

    options: Options
    candidates: list[Candidate]
    benchmarks: dict[int, list[Benchmark]]  # by scale
    metrics: dict[str, Metric]
    device: torch.device
    output: Path
    extra_pictures: ExtraPictures  # for the report; of the main process


def run_test(
    read_options: Callable[[], Options],
    *,
    has_recipe: bool,
    find_inputs: Callable[[], list[Benchmark]] | None,
    discriminator_state: str | None,
    output: Path | None,
) -> int:
    """Upscale and score all benchmarks with all weights, and write images, scores and the report.

    Args:
        read_options: called once the process group is set up, so that only the main process reports mistakes.
        has_recipe: whether the options come from an option file; the weights must then fit its generator, and
            results are named after it.
        find_inputs: finds the photographs to upscale; None: `test.benchmarks` are scored.
        discriminator_state: file of the discriminator that the report visualizes, as of `locate`.
        output: folder for everything that is written; None: results/<name>.

    Returns:
        The exit code: 1 if an image could not be upscaled or scored, else 0.

    Raises:
        UserError: something that the run needs is missing or wrong. Nothing has been upscaled then.
    """
    with joined_world() as world:
        options = world.from_main(read_options)
        setup = prepare(
            options,
            has_recipe=has_recipe,
            find_inputs=find_inputs,
            discriminator_state=discriminator_state,
            output=output,
            world=world,
        )
        console = Console(quiet=not world.main, highlight=False, soft_wrap=True)
        for candidate in setup.candidates:
            console.print(f"{candidate.label}: {candidate.about}", markup=False)
        if options.test.metrics is None and setup.metrics and "lpips" not in setup.metrics:
            console.print("LPIPS is not computed: the weights of its backbone are missing and cannot be downloaded")
        results = [score(candidate, setup, world) for candidate in setup.candidates]
        for table in terminal_tables(results, setup.metrics):
            console.print(table)
        # In this order, because the disk may be too full for the report.
        with world.raise_together():
            if world.main:
                write_files(results, setup)
        return print_summary(results, setup.output, console)


def prepare(
    options: Options,
    *,
    has_recipe: bool,
    find_inputs: Callable[[], list[Benchmark]] | None,
    discriminator_state: str | None,
    output: Path | None,
    world: World,
) -> TestSetup:
    """Find, load and check everything. Arguments and errors: as of `run_test`."""
    chosen, pretrained_root = options.test, options.paths.pretrained_root
    with world.raise_together():
        device = world.device(options.device)
        entries = [Entry.parse(text) for text in chosen.weights]
        if not entries:
            raise UserError("no weights were given; give --weights FILE, --weights bicubic, or test.weights")
        paper_row(chosen.paper_row)  # reports an unknown row before the images are upscaled
    photographs = None if find_inputs is None else world.from_main(find_inputs)
    candidates = load_all_weights(entries, options, has_recipe=has_recipe, device=device, world=world)
    scales = sorted({candidate.scale for candidate in candidates})
    benchmarks = world.from_main(lambda: find_benchmarks(options, photographs, scales=scales))
    all_benchmarks = [benchmark for scale in scales for benchmark in benchmarks[scale]]
    output = output or Path("results") / (
        options.name if has_recipe else "_vs_".join(candidate.label for candidate in candidates)
    )
    sources = {candidate.label: candidate.source for candidate in candidates}
    with world.raise_together():
        if world.main:
            check_output_folder(output, sources, all_benchmarks)
            for scale in scales:
                check_formats(benchmarks[scale], scale=scale)
    has_ground_truth = any(benchmark.has_ground_truth for benchmark in all_benchmarks)
    extra_pictures = NO_EXTRA_PICTURES
    with world.raise_together():
        if discriminator_state is not None and not has_ground_truth:
            raise UserError("--weights_d needs images with ground truth (HR); none of the given images has one")
        if discriminator_state is not None and world.main:
            path = locate(discriminator_state, pretrained_root=pretrained_root)
            discriminator = load_discriminator(path, device=device, pretrained_root=pretrained_root)
            extra_pictures = discriminator_extra_pictures(discriminator, list(sources))
    # Metrics that were named explicitly are built in any case: some need no ground truth.
    names = chosen.metrics if chosen.metrics is not None or has_ground_truth else ()
    for downloads in (True, False):  # one process of each machine first, which downloads what is missing
        with world.raise_together():
            if (world.local_rank == 0) is downloads:
                metrics = build_metrics(names, pretrained_root=pretrained_root, device=device, check_hash=downloads)
    with world.raise_together():
        need_ground_truth = [name for name, metric in metrics.items() if metric.needs_ground_truth]
        if need_ground_truth and not has_ground_truth:
            raise UserError(
                f"{', '.join(need_ground_truth)} cannot be computed: none of the given images has a ground truth (HR)"
            )
        if world.main:
            create_output_folder(output, sources)
    return TestSetup(options, candidates, benchmarks, metrics, device, output, extra_pictures)


def find_benchmarks(
    options: Options, photographs: list[Benchmark] | None, *, scales: list[int]
) -> dict[int, list[Benchmark]]:
    """Find the images to upscale, for each scale. With several scales, it becomes a part of the benchmarks' names.

    Raises UserError if two benchmarks have the same name, and so the same folder.
    """
    root, found = options.paths.data_test_root, {}
    for scale in scales:
        benchmarks = photographs or [find_benchmark(root, name, scale=scale) for name in options.test.benchmarks]
        name, uses = Counter(benchmark.name for benchmark in benchmarks).most_common(1)[0]
        if uses > 1:
            raise UserError(f"{uses} of the benchmarks are called {name}; score them one after the other")
        suffix = "" if len(scales) == 1 else f"_x{scale}"
        found[scale] = [replace(benchmark, name=benchmark.name + suffix) for benchmark in benchmarks]
    return found


def load_all_weights(
    entries: list[Entry], options: Options, *, has_recipe: bool, device: torch.device, world: World
) -> list[Candidate]:
    """Load the candidates on every process; missing files are downloaded by one process of each machine."""
    chosen, pretrained_root = options.test, options.paths.pretrained_root

    def upscaler(generator: Generator) -> Upscaler:
        return Upscaler(
            generator.to(device).to(memory_format=torch.channels_last),
            device,
            precision=chosen.precision,
            tile_px=chosen.tile_px,
            self_ensemble=chosen.self_ensemble,
        )

    with world.raise_together():
        if world.local_rank == 0:
            find_weights(entries, pretrained_root=pretrained_root)
    with world.raise_together():
        return load_candidates(
            entries,
            pretrained_root=pretrained_root,
            generator=options.generator.model_dump() if has_recipe else None,
            scale=options.scale,
            paper_row=chosen.paper_row,
            check_hash=world.local_rank == 0,
            upscaler=upscaler,
        )


def score(candidate: Candidate, setup: TestSetup, world: World) -> Result:
    """Upscale and score all benchmarks with one candidate."""
    scores = {}
    for benchmark in setup.benchmarks[candidate.scale]:
        with tqdm(
            desc=f"{candidate.label}, {benchmark.name}",
            total=len(benchmark.images[world.rank :: world.size]),
            unit="image",
            leave=False,
            disable=None if world.main else True,  # None: shown on a terminal only
        ) as bar:
            scores[benchmark.name] = evaluate(
                candidate.upscale,
                benchmark,
                scale=candidate.scale,
                metrics=setup.metrics,
                device=setup.device,
                world=world,
                batch_size=setup.options.test.batch_size,
                output=setup.output / candidate.label / benchmark.name,
                on_image=lambda image, sr, bar=bar: bar.update(),
            )
    return Result(
        candidate.label, candidate.source, candidate.scale, candidate.about, candidate.paper_row, benchmarks=scores
    )


def write_files(results: list[Result], setup: TestSetup) -> None:
    """Write the data files, then the report."""
    settings = setup.options.test.model_dump(mode="json", include={"precision", "tile_px", "self_ensemble"})
    write_scores(setup.output, results, metrics=setup.metrics, settings=settings)
    write_report(
        setup.output / REPORT,
        results,
        benchmarks=[benchmark for benchmarks in setup.benchmarks.values() for benchmark in benchmarks],
        metrics=setup.metrics,
        sr_root=setup.output,
        title=", ".join(result.label for result in results),
        extra_pictures=setup.extra_pictures,
    )


def print_summary(results: list[Result], output: Path, console: Console) -> int:
    """Print notes, failures and the number of images; returns the exit code."""
    upscaled = failures = 0
    for result in results:
        for name, scores in result.benchmarks.items():
            upscaled += len(scores.images)
            failures += len(scores.failures)
            for note in scores.notes:
                console.print(f"{result.label}, {name}: {note}", markup=False, style="yellow")
            for failure in scores.failures:
                console.print(f"failed: {result.label}, {name}: {failure}", markup=False, style="red")
    done = f"{_count(upscaled, 'image')} upscaled" + (f", {_count(failures, 'failure')}" if failures else "")
    console.print(f"{done}; see {output / REPORT}", markup=False)
    return 1 if failures else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
