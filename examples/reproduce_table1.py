"""Train every row of the paper's Table 1, score all of them, and write the table with the paper's scores beside ours.

The rows are trained one after the other on all GPUs of this machine, or on the CPU if it has none. Each starts from the
published PSNR-oriented weights. The same command again continues: finished rows are skipped, an unfinished one is
resumed, and scoring is repeated only if its weights or options have changed. Runs go to OUT_ROOT/<recipe>.
"""

import argparse
import csv
import io
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from benchmarks.ablation import ROOT, command, folder_of, launcher, scoring, weights_of
from benchmarks.forecast import forecast, present_benchmarks
from sed_sr.data.files import write_text
from sed_sr.options.arguments import FOLDER_FLAGS
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.options.schema import Options
from sed_sr.utils.evaluation.paper_scores import PAPER, PAPER_SCALE
from sed_sr.utils.report.output_folder import RESULTS
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.training.batch_options import batches_of
from sed_sr.utils.training.batch_size import AUTO, Batches, resolve_batches
from sed_sr.utils.training.checklist import sr_bytes
from sed_sr.utils.training.resume import PSNR_ORIENTED

RECIPES = {  # by row of Table 1
    "ESRGAN": "train_rrdb_ESRGAN",
    "RRDB+LDL": "train_rrdb_LDL",
    "RRDB+P": "train_rrdb_P",
    "RRDB+P+SeD": "train_rrdb_P+SeD",
    "RRDB+U": "train_rrdb_U",
    "RRDB+U+SeD": "train_rrdb_U+SeD",
    "SwinIR+LDL": "train_swinir_LDL",
    "SwinIR+P": "train_swinir_P",
    "SwinIR+P+SeD": "train_swinir_P+SeD",
    "SwinIR+U": "train_swinir_U",
    "SwinIR+U+SeD": "train_swinir_U+SeD",
}
DECIMALS = {"lpips": 3, "psnr": 2, "ssim": 3}  # of the paper's table
GO_ON = "once the cause above is removed, the same call of examples/reproduce_table1.sh continues"
MARKDOWN, CSV = "table1.md", "table1.csv"
MADE_BY = "\nMade by\n\n```\n"  # before the command, at the end of the Markdown


@dataclass(frozen=True)
class Row:
    """A row of Table 1.

    Attributes:
        overrides: of the recipe, for training and scoring.
        training: the call of train.py, without `python`.
        processes: that train it.
        batches: of a step of each of them.
    """

    name: str
    recipe: Path
    overrides: tuple[Override, ...]
    options: Options
    processes: int
    batches: Batches
    training: tuple[str, ...]

    @property
    def weights(self) -> Path:
        """The generator after the last step; the last file that a run writes."""
        return weights_of(self.options)


def main() -> int:
    arguments = parse_arguments()
    rows = [find_row(name, arguments) for name in arguments.rows]
    folders = [str(row.weights.parent) for row in rows]
    if len(set(folders)) < len(folders):
        raise UserError(f"each row needs a folder and a name of its own; they are {', '.join(folders)}")
    output = arguments.output_path
    if output is None:
        output = Path("results", "table1" if len(rows) == len(RECIPES) else "_vs_".join(arguments.rows))
    weights = [f"{row.name}={row.weights}" for row in rows]
    words = [*launcher(gpus_for(rows[0].options)), *scoring(weights, rows[0].options, output)]
    if arguments.dry_run:
        predict(rows)
        print(f"scoring, and the table in {output / MARKDOWN}:\n$ python {shlex.join(words)}")
        return 0
    for row in rows:
        train(row)
    if not is_scored(output / MARKDOWN, rows, words):
        score(words, output)
    table, _, _ = (output / MARKDOWN).read_text("utf-8").partition(MADE_BY)
    print(f"\n{table}\nThe table is in {output / MARKDOWN} and {output / CSV}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = tuple(RECIPES)
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=names,
        default=names,
        metavar="ROW",
        help=f"rows of Table 1: {', '.join(names)} (all)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override an option in all rows; can be repeated",
    )
    for folder, content in FOLDER_FLAGS.items():
        parser.add_argument(f"--{folder}", metavar="FOLDER", help=f"folder of the {content} (paths.{folder})")
    parser.add_argument(
        "--output_path", type=Path, metavar="FOLDER", help="for the table, scores and SR images (results/table1)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print all commands, the hours that they take, predicted from a few training steps on random images, and "
        "the disk space that they need; neither data nor weights are needed, and nothing is written",
    )
    return parser.parse_args()


def find_row(name: str, arguments: argparse.Namespace) -> Row:
    """Load the recipe of a row. Raises UserError for mistakes in the options."""
    recipe = ROOT / f"options/{RECIPES[name]}.yml"
    start = PSNR_ORIENTED["swinir" if name.startswith("SwinIR") else "rrdb", PAPER_SCALE]
    settings = [f"train.start_from={start}", *arguments.set]
    folders = {folder: getattr(arguments, folder) for folder in FOLDER_FLAGS if getattr(arguments, folder) is not None}
    overrides = (
        Override("test.metrics", tuple(DECIMALS), "Table 1"),
        *map(Override.parse, settings),
        *(Override(f"paths.{folder}", path, f"--{folder} {path}") for folder, path in folders.items()),
    )
    options = load_options(recipe, overrides)
    processes, batches = divide(options, gpus_for(options))
    words = [word for setting in settings for word in ("--set", setting)]
    words += [word for folder, path in folders.items() for word in (f"--{folder}", path)]
    training = (*launcher(processes), str(ROOT / "train.py"), "--opt", str(recipe), *words, "--resume", "auto")
    return Row(name, recipe, overrides, options, processes, batches, training)


def gpus_for(options: Options) -> int:
    """The processes that this machine has a GPU for; one on a CPU."""
    return 1 if options.device == "cpu" else max(1, torch.cuda.device_count())


def divide(options: Options, most: int) -> tuple[int, Batches]:
    """The largest number of processes that can share a step as the recipe says, and their batches.

    Raises UserError if not even one process can.
    """
    given = batches_of(options)
    if given.size == AUTO:
        given = given._replace(size=None)
    for processes in range(most, 1, -1):
        with suppress(UserError):
            return processes, cast(Batches, resolve_batches(given, processes=processes))
    return 1, cast(Batches, resolve_batches(given, processes=1))


def train(row: Row) -> None:
    """Train a row to its end, unless that is done. Raises UserError if it ends before."""
    if row.weights.exists():
        print(f"{row.name} is finished: {row.weights}", flush=True)
        return
    print(f"\n{row.name}, {batches_in_words(row)}", flush=True)
    code = command(*row.training)
    if code or not row.weights.exists():
        reason = f"failed with exit code {code}" if code else "was stopped before its last step"
        raise UserError(
            f"{row.name} {reason}: python {shlex.join(row.training)}; {GO_ON} from its newest training state"
        )


def batches_in_words(row: Row) -> str:
    """How a step is divided, as in the log of a run."""
    size, per_step, total = row.batches
    number = f"{row.processes} process{'es' * (row.processes > 1)}"
    return f"{total} pairs per step ({number} x batch size {size} x {per_step} accumulated)"


def is_scored(table: Path, rows: Sequence[Row], words: Sequence[str]) -> bool:
    """Whether a table was written by this command and after these weights."""
    if not table.exists() or f"python {shlex.join(words)}" not in table.read_text("utf-8").splitlines():
        return False
    return all(table.stat().st_mtime > row.weights.stat().st_mtime for row in rows)


def score(words: Sequence[str], output: Path) -> None:
    """Score all rows and write the table."""
    if code := command(*words):
        raise UserError(f"scoring failed with exit code {code}: python {shlex.join(words)}; {GO_ON} there")
    scored = json.loads((output / RESULTS).read_text("utf-8"))["weights"]
    means = {
        weights["label"]: {name: scores["mean"] for name, scores in weights["benchmarks"].items()} for weights in scored
    }
    write_text(output / CSV, as_csv(means))
    # Last and with the command, so that `is_scored` can rely on it.
    write_text(output / MARKDOWN, f"{as_markdown(means)}{MADE_BY}python {shlex.join(words)}\n```\n")


def published(row: str, benchmark: str) -> dict[str, float | None]:
    """The paper's scores by metric; empty if it has none."""
    scores = PAPER[row].get(benchmark)
    return {} if scores is None else vars(scores)


def as_markdown(means: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """Table 1 in GitHub's Markdown: two lines for each row, ours and the paper's.

    Args:
        means: by row, benchmark and metric.
    """
    benchmarks = list(next(iter(means.values())))
    lines: list[Sequence[str]] = [("row", "", *benchmarks), ("---", "---", *("---" for _ in benchmarks))]
    for row, scores in means.items():
        lines.append((f"**{row}**", "ours", *(_cell(scores[benchmark]) for benchmark in benchmarks)))
        lines.append(("", "paper", *(_cell(published(row, benchmark)) for benchmark in benchmarks)))
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"LPIPS / PSNR-Y / SSIM-Y\n\n{table}\n"


def _cell(scores: Mapping[str, float | None]) -> str:
    found = [(scores.get(metric), decimals) for metric, decimals in DECIMALS.items()]
    return " / ".join("-" if score is None else f"{score:.{decimals}f}" for score, decimals in found)


def as_csv(means: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """A line for each row, benchmark and metric; missing scores are empty. Arguments: as of `as_markdown`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("row", "benchmark", "metric", "ours", "paper"))
    for row, benchmarks in means.items():
        for benchmark, scores in benchmarks.items():
            paper: dict[str, Any] = published(row, benchmark)
            writer.writerows((row, benchmark, name, scores.get(name), paper.get(name)) for name in DECIMALS)
    return text.getvalue()


def predict(rows: Sequence[Row]) -> None:
    """Print the training command of each row, its hours and its disk space, and the totals."""
    options, device = rows[0].options, World().device(rows[0].options.device)
    hours = disk_bytes = 0.0
    for row in rows:
        print(f"\n{row.name}: ", end="", flush=True)
        if row.weights.exists():
            print(f"finished, {row.weights}")
            continue
        expected = forecast(row.recipe, row.overrides, row.batches, device=device)
        hours += expected.hours
        disk_bytes += expected.disk_bytes
        print(
            f"{expected.steps:,} steps of {expected.step_s:.3g} s, {expected.hours:,.1f} h; "
            f"{expected.disk_bytes / 1e9:.3g} GB\n{batches_in_words(row)}\n$ python {shlex.join(row.training)}",
            flush=True,
        )
    scored = present_benchmarks(options, options.test.benchmarks)
    images_bytes = len(rows) * sum(sr_bytes(benchmark, options.scale) for benchmark in scored)
    free_bytes = shutil.disk_usage(folder_of(options).existing_parent).free
    names = [*options.test.benchmarks, *options.validation.benchmarks]
    lacking = [name for name in dict.fromkeys(names) if not present_benchmarks(options, [name])]
    without = f", without images of {', '.join(lacking)}, which {options.paths.data_test_root} lacks" if lacking else ""
    print(f"\ntotal: {hours:,.1f} h, that is {hours / 24:,.1f} days")
    print(f"disk: {(disk_bytes + images_bytes) / 1e9:.3g} GB needed{without}; {free_bytes / 1e9:.3g} GB are free")
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    how = (
        f"on one {torch.cuda.get_device_name(device)}"
        if device.type == "cuda"
        else f"on the CPU ({threads}) with a single pair, multiplied by the pairs of a step,"
    )
    print(
        f"The seconds were measured {how} with random weights and images. Not included: loading images, communication "
        "between processes, validation, saving and scoring.\n"
    )


if __name__ == "__main__":
    run(main)
