"""Commands in processes that are forked from one that has imported PyTorch and the project.

These imports take about five seconds of processor time, a fork milliseconds. A forked process is otherwise one of its
own: working directory, environment, output, process group, signals and exit code. What it cannot show is what happens
before the imports, while they run, and in the shutdown of the interpreter; such tests start a new `python`.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORKS = multiprocessing.get_context("forkserver")


def can_fork(words: Sequence[str]) -> bool:
    """Whether `python WORDS` runs a script or a module; `-c` and options of Python itself need a new interpreter."""
    return words[0] == "-m" or words[0].endswith(".py")


class Forked:
    """A forked `python WORDS`, with the methods of subprocess.Popen that the tests use."""

    def __init__(self, words: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self.args = list(words)
        self.returncode: int | None = None
        self._outputs = [tempfile.NamedTemporaryFile() for _ in ("stdout", "stderr")]  # noqa: SIM115
        _start_server(env)
        names = [output.name for output in self._outputs]
        self._process = FORKS.Process(target=_run, args=(self.args, str(cwd), dict(env), names))
        self._process.start()
        self.pid: int = self._process.pid

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; what the process wrote to stdout and stderr until then."""
        self.wait(timeout)
        stdout, stderr = (Path(output.name).read_text() for output in self._outputs)
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _start_server(env: Mapping[str, str]) -> None:
    """Start the process from which all others are forked, unless it runs."""
    FORKS.set_forkserver_preload(["tests.preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTHONPATH", "OMP_NUM_THREADS"):  # torch reads the latter when it is imported
            patch.setenv(name, env[name])
        multiprocessing.forkserver.ensure_running()


def _run(words: list[str], cwd: str, env: dict[str, str], outputs: list[str]) -> None:
    """In the forked process: what `python WORDS` does."""
    multiprocessing.set_start_method(None, force=True)  # here it is "forkserver", which workers of a loader would use
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, name in enumerate(outputs, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, cwd)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
