"""Train recipes one after the other, score them side by side, and gather one table.

    python benchmarks/ablation.py options/ablation/*.yml --set train.start_from=RRDB.pth --output ablation

Runs go to OUTPUT/<name>, what test.py makes of N of them to OUTPUT/scores_of_N, the table to OUTPUT/table.md. The same
command again goes on where it was: finished runs are left alone, the others go on.
"""

import argparse
import json
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from sed_sr.data.files import write_text
from sed_sr.models.semantic_extractor import SemanticExtractor
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.options.schema import Options
from sed_sr.utils.report.output_folder import RESULTS
from sed_sr.utils.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
FLAGS = {"paths.data_root": None, "paths.data_test_root": None, "test.benchmarks": "+", "test.metrics": "+"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="option files; each makes a row of the table")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="for all that is made")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override an option of all")
    for key, values in FLAGS.items():
        parser.add_argument(f"--{key.partition('.')[2]}", dest=key, nargs=values, help=f"override {key} of all")
    parser.add_argument("--nproc_per_node", type=int, default=1, metavar="N", help="train in N processes (1)")
    arguments = parser.parse_args()
    flags = {"paths.out_root": arguments.output, **{key: getattr(arguments, key) for key in FLAGS}}
    settings = arguments.set + [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    grid = {recipe: load_options(recipe, [Override.parse(text) for text in settings]) for recipe in arguments.recipes}
    names = [options.name for options in grid.values()]
    if len(set(names)) < len(names):
        raise UserError(f"the recipes are called {', '.join(names)}; each run needs a name of its own")

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the grid as Ctrl-C does
    for recipe, options in grid.items():
        if not weights_of(options).exists():
            words = ["--opt", recipe, *(f"--set={setting}" for setting in settings), "--resume", "auto"]
            command(*launcher(arguments.nproc_per_node), ROOT / "train.py", *words)
    finished = [options for options in grid.values() if weights_of(options).exists()]
    if finished:
        table = score(finished)
        write_text(Path(arguments.output, "table.md"), table)
        print(f"\n{table}")
    for options in grid.values():
        if options not in finished:
            print(f"not trained to its end: {options.name}", file=sys.stderr)
    return int(len(finished) < len(grid))


def folder_of(options: Options) -> RunFolder:
    return RunFolder(options.paths.out_root / options.name)


def weights_of(options: Options) -> Path:
    """The generator at the end: the last file that a run writes."""
    return folder_of(options).weights(options.train.total_steps)


def launcher(processes: int) -> list[str]:
    """What stands between `python` and a script that is started in several processes."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []


def command(*arguments: object) -> int:
    """Print a command and run it; returns its exit code. Interrupted, it first waits until the command has stopped."""
    words = [str(argument) for argument in arguments]
    print(f"$ python {shlex.join(words)}", flush=True)
    with subprocess.Popen([sys.executable, *words]) as process:

        def stop(number: int, frame: FrameType | None) -> None:
            process.terminate()  # training finishes its step and saves
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, stop)
        try:
            return process.wait()
        except KeyboardInterrupt:
            # Ctrl-C is not passed on: the terminal has sent it to the command as well, and torchrun ends at a second
            # signal without its processes.
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def scoring(weights: Iterable[object], options: Options, output: Path) -> list[str]:
    """The call of test.py that scores weights as `options` say under `test`."""
    test = options.test.model_dump_json(exclude={"weights", "paper_row"})
    settings = [
        f"--set=paths={options.paths.model_dump_json()}",
        f"--set=test={test}",
        f"--set=device={options.device}",
    ]
    return [str(ROOT / "test.py"), "--weights", *map(str, weights), *settings, "--output_path", str(output)]


def score(finished: list[Options]) -> str:
    """Score the runs with test.py, as the first of them says under `test`; returns the table, as Markdown."""
    output = finished[0].paths.out_root / f"scores_of_{len(finished)}"
    if code := command(*scoring(map(weights_of, finished), finished[0], output)):
        raise UserError(f"test.py ended with exit code {code}; the same command tries it again")
    found = json.loads((output / RESULTS).read_text("utf-8"))
    rows = []
    for options, scored in zip(finished, found["weights"], strict=True):
        rows.append(about(options))
        for benchmark, scores in scored["benchmarks"].items():
            for metric, mean in scores["mean"].items():
                rows[-1][f"{benchmark} {found['metrics'][metric]['title']}"] = "-" if mean is None else f"{mean:.4g}"
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in lines)


def about(options: Options) -> dict[str, str]:
    """What the discriminator sees, how finely, and the median of the seconds that a step took."""
    row = {"recipe": options.name, "extractor": "-", "layer": "-", "fusion": "none", "channels": "-", "stride": "-"}
    if options.discriminator is not None and options.discriminator.fusion != "none":
        model, layer = options.semantic_extractor.model, options.semantic_extractor.layer
        with torch.device("meta"):  # without its weights
            extractor = SemanticExtractor(model=model, layer=layer)
        row |= {"extractor": model, "layer": layer, "fusion": options.discriminator.fusion}
        row |= {"channels": str(extractor.channels), "stride": str(extractor.stride)}
    folder = folder_of(options)
    pairs = load_options(folder.options).train.total_batch_size  # a number there, whatever the recipe says
    lines = map(json.loads, folder.metrics.read_text("utf-8").splitlines())
    step_s = statistics.median(pairs / line["images_per_s"] for line in lines if line["kind"] == "train")
    return {**row, "s/step": f"{step_s:.3g}"}


if __name__ == "__main__":
    run(main)
