"""One function over many image files, in processes: what the commands that prepare a data set have in common.

They have the same arguments, the same manners towards an output folder that holds something already, and the same end:
images that failed are named, the others are done, and the exit code tells.
"""

import argparse
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import cv2
from rich.console import Console
from rich.progress import track

from sed_sr.data.files import TEMPORARY_SUFFIX, WriteError, flush_file_systems
from sed_sr.options.errors import UserError

Job = TypeVar("Job")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every command over image files has."""
    parser.add_argument("--n_thread", type=int, default=_usable_cores(), help="worker processes (default: the cores)")
    # Each further level takes longer to write, and none is smaller by more than some 4 % (benchmarks/RESULTS.md).
    parser.add_argument("--compression_level", type=int, default=1, help="of the PNG files, 0 to 9 (default 1)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote to the output")
    existing.add_argument("--resume", action="store_true", help="keep what an earlier run wrote, do what is missing")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError when an argument of `add_arguments` is out of range."""
    if args.n_thread < 1:
        raise UserError(f"--n_thread is {args.n_thread}; at least 1 process is needed")
    if not 0 <= args.compression_level <= 9:
        raise UserError(f"--compression_level is {args.compression_level}; 0 (fast) to 9 (small) is expected")


def refuse_collisions(outputs: Mapping[Path, str]) -> None:
    """Raise UserError when two sources would be written under one name.

    Args:
        outputs: what each source's output is called.
    """
    sources = defaultdict(list)
    for source, output in outputs.items():
        sources[output].append(source)
    for output, clashing in sources.items():
        if len(clashing) > 1:
            names = " and ".join(source.name for source in clashing)
            raise UserError(f"{names} in {clashing[0].parent} would both be written as {output}; rename one of them")


def prepare_outputs(
    outputs: Sequence[Path], *, inputs: Sequence[Path], pattern: str, overwrite: bool, resume: bool
) -> None:
    """Create the output folders, or make sure that what they hold is not mixed with new files by accident.

    Args:
        inputs: the folders read from; no folder may be given twice.
        pattern: regular expression of the names that this command writes; `overwrite` removes these files and no
            others, because files left from other settings would pass for new ones.
        overwrite: start again in a folder that holds something.
        resume: go on in such a folder. Temporary files of a process that was killed are removed.

    Raises:
        UserError: two folders are the same, or an output cannot be created, or it holds something and neither flag is
            set. Nothing has been removed then.
    """
    given = Counter(folder.resolve() for folder in [*inputs, *outputs])
    for output in outputs:
        if given[output.resolve()] > 1:
            raise UserError(f"the output folder {output} is given for something else too; give another folder")
    for output in outputs:
        if not (overwrite or resume) and os.path.isdir(output) and any(output.iterdir()):
            raise UserError(
                f"the output folder {output} is not empty; give --resume to do what is missing, or --overwrite"
            )
    for output in outputs:
        try:
            output.mkdir(parents=True, exist_ok=True)
            names = os.listdir(output)
            old = [name for name in names if overwrite and re.fullmatch(pattern, name)]
            leftover = [name for name in names if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)]
            for name in old + leftover:
                (output / name).unlink()
        except OSError as error:
            raise UserError(f"cannot use the output folder {output}: {error.strerror}") from error
        if old:
            print(f"removed {len(old)} images of an earlier run from {output}")


def written_bytes(output: Path, pattern: str) -> int:
    """What the files take that `prepare_outputs` would remove from a folder, which may not be there."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(output) if re.fullmatch(pattern, entry.name))
    except OSError:
        return 0


def remove_damaged(paths: Iterable[Path], *, is_whole: Callable[[Path], bool]) -> int:
    """Remove the files that are there but not whole, so that they are made again; return how many.

    Files that were not flushed one by one can be empty, truncated or have zeros in them after a power failure.

    Raises:
        WriteError: a damaged file cannot be removed.
    """
    # os.path: a name too long to be one is just not there
    damaged = [path for path in paths if os.path.exists(path) and not is_whole(path)]
    for path in damaged:
        try:
            path.unlink()
        except OSError as error:
            raise WriteError(f"cannot remove the damaged file {path}: {error.strerror}") from error
    return len(damaged)


def run(
    work: Callable[[Job], int],
    jobs: Sequence[Job],
    *,
    workers: int,
    made: str,
    outputs: Sequence[Path] = (),
    remove_damaged_of: Callable[[Job], int] | None = None,
) -> int:
    """Apply `work` to every job in a pool of processes, behind a progress bar on stderr.

    Args:
        work: picklable; does one job and returns how many images it wrote. A UserError that it raises is printed and
            the other jobs go on, except WriteError, which ends them all.
        workers: number of processes.
        made: what the summary says of the images written: "LR images in <folder>".
        outputs: folders of files that `work` does not flush (`durable=False`); they are flushed together at the end.
        remove_damaged_of: picklable; called before `work`. It removes the damaged files of a job and returns how many.

    Returns:
        The exit code: 1 when some jobs failed, else 0.

    Raises:
        UserError: an image could not be written, or a worker process died.
    """
    start_s = time.monotonic()
    written, damaged, failures = 0, 0, []
    executor = ProcessPoolExecutor(
        min(workers, len(jobs)),
        # Neither copies this process's threads and locks, as fork would, nor depends on the platform.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        with _interrupts_held_back():
            futures = [executor.submit(_do, job, work, remove_damaged_of) for job in jobs]
        console = Console(stderr=True)
        for future in track(as_completed(futures), "", len(jobs), console=console, disable=not console.is_terminal):
            try:
                written_now, damaged_now = future.result()
                written += written_now
                damaged += damaged_now
            except WriteError:
                raise
            except UserError as error:
                failures.append(str(error))
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, most likely for lack of memory; lower --n_thread") from error
    finally:
        # Images in work are finished, the others dropped: a moment after Ctrl-C, and nothing half-done is left.
        executor.shutdown(cancel_futures=True)
    for failure in sorted(failures):
        print(f"failed: {failure}", file=sys.stderr)
    flush_file_systems(outputs)
    took_s = time.monotonic() - start_s
    made_again = f"; {damaged} files of an earlier run were damaged and made again" if damaged else ""
    done = len(jobs) - len(failures)
    print(f"{done} done, {len(failures)} failed: wrote {written} {made} in {took_s:.1f} s{made_again}")
    return 1 if failures else 0


def _do(job: Job, work: Callable[[Job], int], remove_damaged_of: Callable[[Job], int] | None) -> tuple[int, int]:
    damaged = remove_damaged_of(job) if remove_damaged_of else 0
    return work(job), damaged


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    # Processes started in here inherit the blocked SIGINT for good: Ctrl-C reaches every process of a terminal, and
    # this one alone answers it. A Ctrl-C meanwhile is delivered at the end.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start_worker() -> None:
    cv2.setNumThreads(0)  # the processes use the cores already
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A pool whose parent was killed would wait for work for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _usable_cores() -> int:
    # Containers and batch systems lend fewer cores than the machine has; macOS does not say.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
