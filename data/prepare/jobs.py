"""What the commands that prepare a data set share: arguments, output folders, and one function over many images.

A job that fails is reported on stderr, and the others go on. The exit code is 1 when some failed.
"""

import argparse
import multiprocessing
import os
import re
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import cv2
from tqdm import tqdm

from sed_sr.data.files import TEMPORARY_SUFFIX, WriteError, flush_file_systems
from sed_sr.data.workers import exit_with_parent, usable_cores
from sed_sr.options.errors import UserError

Job = TypeVar("Job")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all commands over image files have."""
    parser.add_argument("--n_thread", type=int, default=usable_cores(), help="worker processes (default: the cores)")
    # Each further level takes longer to write, and none is smaller by more than some 4 % (benchmarks/RESULTS.md).
    parser.add_argument("--compression_level", type=int, default=1, help="of the PNG files, 0 to 9 (default 1)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run in the output")
    existing.add_argument(
        "--resume", action="store_true", help="keep the files of an earlier run, add the missing ones"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError when an argument of `add_arguments` is out of range."""
    if args.n_thread < 1:
        raise UserError(f"--n_thread is {args.n_thread}; at least 1 process is needed")
    if not 0 <= args.compression_level <= 9:
        raise UserError(f"--compression_level is {args.compression_level}; 0 (fast) to 9 (small) is expected")


def check_unique_names(outputs: Mapping[Path, str]) -> None:
    """Raise UserError when two sources would be written under one name.

    Args:
        outputs: the name of each source's output.
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
    """Create the output folders, and check that new files are not mixed with older ones by accident.

    Args:
        inputs: the folders that are read; no folder may be given twice.
        pattern: regular expression of the names that the command writes. `overwrite` removes all these files, since
            files left from other settings would pass for new ones, and no others.
        overwrite: start again in a folder that is not empty.
        resume: continue in such a folder. Temporary files of a killed process are removed.

    Raises:
        UserError: two folders are the same, or an output cannot be created, or it is not empty and neither flag is set.
            Nothing has been removed then.
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
            temporary = [name for name in names if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)]
            for name in old + temporary:
                (output / name).unlink()
        except OSError as error:
            raise UserError(f"cannot use the output folder {output}: {error.strerror}") from error
        if old:
            print(f"removed {len(old)} images of an earlier run from {output}")


def written_bytes(output: Path, pattern: str) -> int:
    """The size of the files in a folder that `prepare_outputs` would remove; 0 when there is no such folder."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(output) if re.fullmatch(pattern, entry.name))
    except OSError:
        return 0


def remove_damaged(paths: Iterable[Path], *, is_intact: Callable[[Path], bool]) -> int:
    """Remove the files that exist but are damaged, so that they are written again; return how many.

    Files that were not flushed one by one can be empty, truncated or contain zeros after a power failure.

    Raises:
        WriteError: a damaged file cannot be removed.
    """
    # os.path.exists: Path.exists raises for a name that is too long
    damaged = [path for path in paths if os.path.exists(path) and not is_intact(path)]
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
    outputs: Sequence[Path],
    remove_damaged_of: Callable[[Job], int],
) -> int:
    """Apply `work` to every job in a pool of processes, with a progress bar on stderr.

    Args:
        work: picklable; does one job and returns how many images it wrote. Its UserError is printed and the other jobs
            go on, except for a WriteError, which ends them all.
        workers: number of processes.
        made: the images written, for the summary: "LR images in <folder>".
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
        # Unlike fork it copies neither threads nor locks of this process, and it works on every platform.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        with _interrupts_blocked():
            futures = [executor.submit(_do, job, work, remove_damaged_of) for job in jobs]
        for future in tqdm(as_completed(futures), total=len(jobs), disable=None):  # None: shown on a terminal only
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
        # After Ctrl-C, running jobs are finished and the others are dropped, so that nothing half-done is left.
        executor.shutdown(cancel_futures=True)
    for failure in sorted(failures):
        print(f"failed: {failure}", file=sys.stderr)
    flush_file_systems(outputs)
    took_s = time.monotonic() - start_s
    made_again = f"; {damaged} files of an earlier run were damaged and made again" if damaged else ""
    done = len(jobs) - len(failures)
    print(f"{done} done, {len(failures)} failed: wrote {written} {made} in {took_s:.1f} s{made_again}")
    return 1 if failures else 0


def _do(job: Job, work: Callable[[Job], int], remove_damaged_of: Callable[[Job], int]) -> tuple[int, int]:
    damaged = remove_damaged_of(job)
    return work(job), damaged


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    # Ctrl-C reaches every process of a terminal. Processes started in here inherit the blocked SIGINT, so that only
    # this process reacts. A Ctrl-C during the block is delivered at its end.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start_worker() -> None:
    cv2.setNumThreads(0)  # the processes use the cores already
    exit_with_parent()
