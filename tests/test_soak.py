"""Soak test, run by `make test-long`: a run with many faults ends bit for bit as the run without them.

Ranks are killed and stalled, training states are damaged, the disk is full for a while, and file operations are slow or
fail. All random choices follow from a seed, which is printed; SOAK_SEED=<number> in the environment sets another one.
"""

import json
import os
import random
import re
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from tests.conftest import assert_equal_runs, children_of, newest_step, not_outlived, ranks_of, same

SCRIPT = "tests/scripts/recorded_train.py"
FAULTS = {"none": 9, "damaged state": 8, "stalled rank": 6, "full disk": 2}  # what accompanies how many of the kills
EARLY_SHARE = 0.3  # of the kills: these hit ranks that are starting
RESTARTS = 4  # by torchrun, before it gives up
HANG_S = 240  # without a new training state or attempt
DISK_MB = 700
MAX_LAUNCHES = 40
FAILING = "failing on purpose"  # printed by recorded_train.py when it makes a file operation fail


@pytest.fixture
def disk(workshop: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A small file system, mounted at workshop/disk in a mount namespace of its own, which needs no privileges.

    Returns its path for this process, and the prefix of a command that is to run in the namespace.
    """
    path = workshop / "disk"
    path.mkdir()
    mount = f"mount -t tmpfs -o size={DISK_MB}m tmpfs '{path}' && echo mounted && exec cat"
    words = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount)
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as holder:
        if not holder.stdout.readline():
            pytest.skip(f"this system lets no ordinary user mount a file system: {holder.stderr.read().strip()}")
        entering = ("nsenter", "--target", str(holder.pid), "--user", "--mount", "--preserve-credentials")
        yield (Path(f"/proc/{holder.pid}/root{path}"), (*entering, "env", f"--chdir={workshop}"))


class Job:
    """A run under `torchrun --max-restarts`. When torchrun gives up, the same command is started again.

    Args:
        start: starts torchrun, with a folder for its logs and for the records of the ranks.
        root: holds such a folder for each launch.
        run: the run's folder.
    """

    def __init__(self, start: Callable[[Path], subprocess.Popen], *, root: Path, run: Path, processes: int) -> None:
        self._start, self.root, self.run, self.processes = start, root, run, processes
        self.launches = 0
        self._killed = set()  # records of the attempts that were killed

    def __enter__(self) -> "Job":
        self.root.mkdir()
        self._launch()
        return self

    def __exit__(self, *_: object) -> None:
        with not_outlived(self.process):
            pass

    def _launch(self) -> None:
        self.launches += 1
        folder = self.root / f"launch_{self.launches:02d}"
        folder.mkdir()
        self.process = self._start(folder)

    def wait_for_save(self) -> float:
        """Wait until a save begins in an attempt that was not killed. Returns the waiting time in seconds."""
        start_s = time.monotonic()
        self._wait_until(
            lambda: any('"save"' in path.read_text() for path in set(self._records()) - self._killed), "a save"
        )
        return time.monotonic() - start_s

    def signal(self, number: signal.Signals, moments: random.Random) -> int:
        """Send a signal to a random rank. Returns its process id."""
        while True:
            self._wait_until(self._ranks, "a process for each rank")
            with suppress(ProcessLookupError, IndexError):
                rank = moments.choice(self._ranks())
                os.kill(rank, number)
                if number == signal.SIGKILL:
                    self._killed.update(self._records())
                return rank

    def finish(self) -> None:
        """Wait until the run has ended, and all of its processes."""
        self._wait_until(lambda: self.process.poll() == 0, "its end")
        self._wait_until(lambda: not processes_of(self.root), "the end of its processes")

    def _records(self) -> list[Path]:
        return list(self.root.glob("*/attempt*_rank0.jsonl"))

    def _ranks(self) -> list[int]:
        """Process ids of the ranks; none unless all of them are alive."""
        with suppress(FileNotFoundError, ProcessLookupError):
            ranks = ranks_of(self.process)
            return ranks if len(ranks) == self.processes else []
        return []

    def _wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait; start the run again when it fails. If it hangs, fail with the stacks of all its threads."""
        progress, since_s = None, time.monotonic()
        while not condition():
            if self.process.poll():
                assert self.launches < MAX_LAUNCHES, self.process.communicate()
                self._launch()
            elif self.process.poll() == 0:
                assert what.startswith(("its end", "the end")), f"the run has ended before {what}; raise its steps"
            now = newest_step(self.run), len(list(self.root.glob("*/*/attempt_*")))
            if now != progress:
                progress, since_s = now, time.monotonic()
            if time.monotonic() - since_s > HANG_S:
                self._fail_of_hang(what)
            time.sleep(0.05)

    def _fail_of_hang(self, what: str) -> None:
        processes = children_of(self.process.pid)
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
        time.sleep(3)
        newest = max(self.root.glob("*/*/attempt_*"), key=lambda path: path.stat().st_mtime)
        said = "\n".join(f"--- {log}\n{log.read_text()}" for log in sorted(newest.rglob("*.log")))
        pytest.fail(f"it hangs: {HANG_S} s without {what}; torchrun had the processes {processes}\n{said}")


def processes_of(folder: Path) -> list[int]:
    """Process ids of all processes with the folder in their arguments; forked loader workers have them, too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


class Faults:
    """What happens beside the kill of a rank: each fault is a block within which the rank is killed."""

    def __init__(self, job: Job, *, disk: Path, moments: random.Random) -> None:
        self._job, self._disk, self._moments = job, disk, moments
        self._versions_damaged = set()
        self.damages = 0
        self.stalled_s = 0.0

    def during(self, fault: str) -> AbstractContextManager[None]:
        blocks = {
            "none": nullcontext,
            "damaged state": self._damaged_state,
            "stalled rank": self._stalled_rank,
            "full disk": self._full_disk,
        }
        return blocks[fault]()

    @property
    def damaged(self) -> set[str]:
        """Names of the damaged states, without their suffix."""
        return {Path(name).stem for name, _ in self._versions_damaged}

    @contextmanager
    def _damaged_state(self) -> Iterator[None]:
        """After the kill, the newest state is damaged: at once, or while the next ranks start."""
        yield
        time.sleep(self._moments.choice((0, self._moments.uniform(0, 8))))
        flips, place = self._moments.random() < 0.5, self._moments.random()
        with suppress(FileNotFoundError):  # the run may delete it
            whole = [path for path in (self._job.run / "states").glob("state_*.pth") if not self._is_damaged(path)]
            if len(whole) < 2:  # the run needs one
                return
            newest = max(whole)
            with newest.open("r+b") as file:
                size = newest.stat().st_size
                if flips:
                    file.seek(int(place * size))
                    (byte,) = file.read(1)
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte ^ 1 << self._moments.randrange(8)]))
                else:
                    file.truncate(int(place * size))
            self.damages += 1
            self._versions_damaged.add(self._version(newest))

    def _is_damaged(self, path: Path) -> bool:
        return self._version(path) in self._versions_damaged

    def _version(self, path: Path) -> tuple[str, int]:
        return path.name, path.stat().st_mtime_ns  # the run may write this state again

    @contextmanager
    def _stalled_rank(self) -> Iterator[None]:
        """A rank is stopped for some seconds; the kill comes during them or afterwards."""
        seconds, kill_during = self._moments.uniform(1, 5), self._moments.random() < 0.5
        rank = self._job.signal(signal.SIGSTOP, self._moments)
        if kill_during:
            yield
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(rank, signal.SIGCONT)
        self.stalled_s += seconds
        if not kill_during:
            yield

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        """The disk is full for some seconds before and after the kill."""
        filler = self._disk / "filler"
        for block_bytes in (2**20, 4096):
            with suppress(OSError), filler.open("ab", buffering=0) as file:
                while file.write(bytes(block_bytes)):
                    pass
        time.sleep(self._moments.uniform(0, 5))
        yield
        time.sleep(self._moments.uniform(0, 15))
        filler.unlink()


@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "recipe", "steps"), [(2, "swinir_P+SeD.yml", 100), (4, "swinir_P_real.yml", 120)]
)
def test_run_with_faults_equals_undisturbed_run(
    workshop, launch, disk, tmp_path_factory, capsys, processes, recipe, steps
):
    seed = int(os.environ.get("SOAK_SEED", processes))
    print(f"SOAK_SEED={seed}")  # pytest shows it if the test fails
    moments = random.Random(seed)
    disk, through = disk
    logs = tmp_path_factory.mktemp("soak")  # file operations are slow or fail in the workshop alone

    def job(name: str, run: Path, *, out_root: Path, seed: str, through: tuple[str, ...] = ()) -> Job:
        def start(folder: Path) -> subprocess.Popen:
            return launch(
                *("-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"),
                *(f"--max-restarts={RESTARTS}", f"--log-dir={folder}", "--redirects=3", SCRIPT, folder),
                *(seed if seed == "none" else f"{seed} {folder.name}", "--opt", recipe, "--out_root", out_root),
                *("--set", "name=soak", "--set", f"train.total_steps={steps}", "--set", "train.save_every_steps=1"),
                *("--set", "validation.every_steps=5", "--resume", "auto"),
                cwd=workshop,
                through=through,
            )

        return Job(start, root=logs / name, run=run, processes=processes)

    expected = workshop / "checkpoint/soak"
    with job("undisturbed", expected, out_root=expected.parent, seed="none") as undisturbed:
        start_s = undisturbed.wait_for_save()
        undisturbed.finish()

    recoveries_s = []
    with job("disturbed", disk / "soak", out_root=workshop / "disk", seed=str(seed), through=through) as disturbed:
        faults = Faults(disturbed, disk=disk, moments=moments)
        kinds = list(Counter(FAULTS).elements())
        moments.shuffle(kinds)
        begun_s = time.monotonic()
        for number, kind in enumerate(kinds):
            if moments.random() < EARLY_SHARE:
                delay_s = moments.uniform(0, start_s)
            else:
                recovered_s = disturbed.wait_for_save()
                recoveries_s += [recovered_s] * (number > 0)
                delay_s = moments.uniform(0, 1)
            with faults.during(kind):
                time.sleep(delay_s)
                disturbed.signal(signal.SIGKILL, moments)
        recoveries_s.append(disturbed.wait_for_save())
        disturbed.finish()
        took_s = time.monotonic() - begun_s

    attempts = [said_in(folder) for folder in disturbed.root.glob("*/*/attempt_*")]
    sentences = Counter(sentence for attempt in attempts for sentence in sentences_in(attempt))
    figures = {
        "kills": len(kinds),
        "launches": disturbed.launches,
        "restarts by torchrun": len(attempts) - disturbed.launches,
        "recovery, median (s)": round(statistics.median(recoveries_s), 1),
        "recovery, longest (s)": round(max(recoveries_s), 1),
        "damaged states": faults.damages,
        "stalled (s)": round(faults.stalled_s),
        "failed file operations": sum(FAILING in attempt for attempt in attempts),
        "attempts that ended with a sentence": sum(bool(sentences_in(attempt)) for attempt in attempts),
        "run with faults (s)": round(took_s),
        **{f"attempts with: {sentence}": times for sentence, times in sentences.most_common()},
    }
    with capsys.disabled():
        print(f"\n{recipe}, {processes} processes, SOAK_SEED={seed}")
        for what, figure in figures.items():
            print(f"{figure:8}  {what}")

    assert_ranks_agree(disturbed, assert_ranks_agree(undisturbed, {}))
    assert_equal_runs(disturbed.run, expected)
    assert_equal_results(disturbed.run, expected)
    set_aside = {path.stem for path in (disturbed.run / "states").glob("*.damaged")}
    assert set_aside <= faults.damaged, f"intact states were set aside: {sorted(set_aside - faults.damaged)}"
    tracebacks = [text for text in attempts if "Traceback" in text]
    assert not tracebacks, f"{len(tracebacks)} tracebacks, the first in {tracebacks[0]}"


def said_in(attempt: Path) -> str:
    """What the ranks of an attempt printed to stderr."""
    return "\n".join(f"--- {log}\n{log.read_text(errors='replace')}" for log in sorted(attempt.glob("*/stderr.log")))


def sentences_in(text: str) -> set[str]:
    """The error messages, without numbers and names of files."""
    messages = re.findall(r"^train\.py: error: (.{1,120})", text, re.MULTILINE)
    return {re.sub(r"\d+", "N", re.sub(r"\S+/\S+\.\w+", "FILE", sentence)) for sentence in messages}


def assert_ranks_agree(job: Job, reference: dict[int, str]) -> dict[int, str]:
    """At every save, all ranks are at the same step with the same networks and moments, those of the reference.

    Args:
        reference: step -> digest.

    Returns:
        The reference, with the steps that it lacked.
    """
    digests = dict(reference)
    for first in sorted(job.root.glob("*/attempt*_rank0.jsonl")):
        ranks = [
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            for path in (first.with_name(first.name.replace("rank0", f"rank{rank}")) for rank in range(job.processes))
        ]
        lengths = list(map(len, ranks))
        assert max(lengths) - min(lengths) <= 1, f"{first}: numbers of saves that the ranks began: {lengths}"
        for places in zip_longest(*ranks):
            place, *others = filter(None, places)
            assert all(other == place for other in others), f"{first}: the ranks are at {places}"
            expected = digests.setdefault(place["step"], place["digest"])
            assert place["digest"] == expected, f"{first}: differs from the reference at {place}"
    return digests


def assert_equal_results(run: Path, expected: Path) -> None:
    """The same files of weights and images, and no temporary files."""
    weights = {path.name for path in expected.glob("generator_*.pth")}
    assert {path.name for path in run.glob("generator_*.pth")} == weights
    for name in weights:
        ours, theirs = (torch.load(folder / name, weights_only=True) for folder in (run, expected))
        assert same(ours["params"], theirs["params"]), name
        assert same(ours.get("params_ema"), theirs.get("params_ema")), name
    images = {path.relative_to(expected): path.read_bytes() for path in expected.rglob("*.png")}
    assert {path.relative_to(run): path.read_bytes() for path in run.rglob("*.png")} == images
    assert not [path for path in run.rglob(".*") if path.name.endswith(".tmp")]
