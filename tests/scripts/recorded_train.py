"""Started by torchrun in place of train.py: trains, and records where each rank stands at each save.

recorded_train.py RECORDS SEED [ARGUMENT ...]

Each rank writes RECORDS/attempt<attempt>_rank<rank>.jsonl: a line when the loop starts and one for each save, with the
step and a digest of everything that training changes. Unless SEED is `none`, file operations below the working folder
are slow at random, and in some attempts one of them fails, as on a network file system. SIGABRT prints the stacks of
all threads.
"""

import builtins
import errno
import faulthandler
import functools
import io
import json
import os
import random
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sed_sr.utils.training.loop import TrainLoop
from sed_sr.utils.weights import checkpoint

TRAIN = Path(__file__).parents[2] / "train.py"
SLOW_SHARE, SLOW_S = 0.02, 0.3  # share of slow operations, and how long one of them takes at most
FAILING_SHARE, FAILING_BEFORE = 0.15, 100  # share of ranks in which an operation fails: one of the first so many


def record(file: Path, event: str, loop: TrainLoop) -> None:
    place = {"event": event, "step": loop.step, "digest": checkpoint.digest(loop.train_step.state_dict())}
    with file.open("a") as lines:
        lines.write(json.dumps(place) + "\n")


def recorded(method: Callable, file: Path, event: str) -> Callable:
    @functools.wraps(method)
    def noted(loop: TrainLoop):
        record(file, event, loop)
        return method(loop)

    return noted


class UnreliableFiles:
    """Makes file operations below a folder slow at random, and at most one of them fail."""

    def __init__(self, folder: str, seed: str) -> None:
        self.folder = os.path.join(folder, "")
        self.random = random.Random(seed)
        fails = self.random.random() < FAILING_SHARE
        self.fails_in = self.random.randrange(1, FAILING_BEFORE) if fails else -1

    def unreliable(self, operation: Callable) -> Callable:
        @functools.wraps(operation)
        def call(path, *arguments, **more):
            if isinstance(path, str | os.PathLike) and os.path.abspath(os.fspath(path)).startswith(self.folder):
                if self.random.random() < SLOW_SHARE:
                    time.sleep(self.random.uniform(0, SLOW_S))
                self.fails_in -= 1
                if self.fails_in == 0:
                    print(f"failing on purpose: {operation.__name__} {path}", file=sys.stderr, flush=True)
                    raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(path))
            return operation(path, *arguments, **more)

        return call

    def install(self) -> None:
        builtins.open = io.open = self.unreliable(open)
        os.open, os.stat, os.replace = map(self.unreliable, (os.open, os.stat, os.replace))


def main() -> None:
    records, seed, *arguments = sys.argv[1:]
    faulthandler.enable()
    rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    file = Path(records, f"attempt{attempt}_rank{rank}.jsonl")
    TrainLoop.run = recorded(TrainLoop.run, file, "start")
    TrainLoop._start_save = recorded(TrainLoop._start_save, file, "save")
    if seed != "none":
        UnreliableFiles(os.getcwd(), f"{seed} {attempt} {rank}").install()
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


main()
