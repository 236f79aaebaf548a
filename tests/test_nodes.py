"""Several nodes are one run: torchrun agents that meet over a network, and the batch script for Slurm."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import (
    ROOT,
    TRAIN,
    assert_equal_runs,
    finished,
    free_endpoint,
    newest_step,
    not_outlived,
    ranks_of,
    wait_until,
)

SLURM = ROOT / "examples/slurm.sh"
SRUN = """\
import itertools, os, signal, subprocess, sys

command = list(itertools.dropwhile(lambda word: word.startswith("--"), sys.argv[1:]))
numbers = [str(number) for number in range(int(os.environ["SLURM_NTASKS"]))]
tasks = [
    subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": number, "SLURM_LOCALID": number}) for number in numbers
]
signal.signal(signal.SIGUSR1, lambda number, _: [task.send_signal(number) for task in tasks])
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = """\
import os, sys

with open("asked_of_slurm", "a") as file:
    print(*sys.argv[1:], file=file)
if sys.argv[1] == "show":
    print("127.0.0.1", "the-other-node", sep=os.linesep)
"""
JOB = os.getpid()  # so that tests that run beside this one have another port
NAMES = "show hostnames node[0-1]\n"
REQUEUE = f"requeue {JOB}\n"
# Stands in for `python train.py`: leaves its arguments, one a line, waits for USR1 if told to, and ends with a code.
PRETENDED = """\
import os, signal, sys

signal.signal(signal.SIGUSR1, lambda *_: sys.exit(int(os.environ["CODE"])))
open("started_" + os.environ["RANK"], "w").write("\\n".join(sys.argv[1:]))
if os.environ["WAIT"]:
    signal.pause()
sys.exit(int(os.environ["CODE"]))
"""


@pytest.fixture
def slurm(workshop: Path) -> Callable[..., subprocess.Popen]:
    """Starts the batch script as Slurm does on the first of the nodes that it gave to the job; in the workshop."""
    stand_ins = workshop / "bin"
    stand_ins.mkdir()
    for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
        write_program(stand_ins / name, program)
    (workshop / "train.py").symlink_to(ROOT / "train.py")

    def start(*arguments: str, **more: str) -> subprocess.Popen:
        slurms = {"SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NTASKS": 2, "SLURM_CPUS_PER_TASK": 1}
        path = os.pathsep.join([str(stand_ins), str(Path(sys.executable).parent), os.environ["PATH"]])
        return subprocess.Popen(
            ["bash", SLURM, *arguments],
            cwd=workshop,
            env={**os.environ, **{k: str(v) for k, v in slurms.items()}, "PATH": path, "OMP_NUM_THREADS": "1", **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def write_program(path: Path, program: str) -> None:
    path.write_text(f"#!{sys.executable}\n{program}")
    path.chmod(0o755)


@contextmanager
def session_not_outlived(process: subprocess.Popen) -> Iterator[None]:
    """Nothing that the process started outlives the block."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_slurm_job_whose_time_is_up_is_requeued_and_goes_on_exactly(workshop, slurm, command, undisturbed):
    run, arguments = workshop / "checkpoint/two", (*TRAIN[2:], "--set", "name=two")
    job = slurm(*arguments)
    with session_not_outlived(job):
        wait_until(lambda: newest_step(run) > 0, job)
        job.send_signal(signal.SIGUSR1)
        _, stderr = job.communicate(timeout=60)
    assert job.returncode == 0, stderr
    assert newest_step(run) < newest_step(undisturbed / "two")
    assert (workshop / "asked_of_slurm").read_text() == NAMES + REQUEUE

    # what the job starts when it is there again, as the tests below show
    finished(command(*TRAIN, "--set", "name=two", cwd=workshop, processes=2), "resumes from")
    assert_equal_runs(run, undisturbed / "two")


def test_slurm_job_with_a_mistake_in_its_options_fails_and_is_not_requeued(workshop, slurm):
    job = slurm("rrdb_psnr.yml", "--set", "train.total_step=1")
    with session_not_outlived(job):
        _, stderr = job.communicate(timeout=120)
    assert job.returncode == 2
    assert "train.total_step is not an option" in stderr
    assert (workshop / "asked_of_slurm").read_text() == NAMES


@pytest.mark.parametrize(
    ("time_is_up", "code", "requeued"), [(True, 0, True), (True, 3, False), (False, 0, False), (False, 3, False)]
)
def test_slurm_job_is_requeued_only_where_a_run_was_stopped_in_order(workshop, slurm, time_is_up, code, requeued):
    write_program(workshop / "bin/python", PRETENDED)
    left = [workshop / f"started_{rank}" for rank in (0, 1)]
    job = slurm("recipe.yml", "--data_root", "two words", CODE=str(code), WAIT="1" if time_is_up else "")
    with session_not_outlived(job):
        if time_is_up:
            wait_until(lambda: all(path.exists() and path.read_text() for path in left), job, seconds=20)
            job.send_signal(signal.SIGUSR1)
        job.communicate(timeout=20)
    assert job.returncode == code
    words = ["train.py", "--opt", "recipe.yml", "--resume", "auto", "--data_root", "two words"]
    assert [path.read_text().splitlines() for path in left] == [words, words]
    assert (workshop / "asked_of_slurm").read_text() == NAMES + REQUEUE * requeued


def agent(*, endpoint: str, address: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The torchrun of one node of two, with one process."""
    return ("-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=run",
            f"--rdzv_endpoint={endpoint}", f"--local_addr={address}", *more, *TRAIN, "--set", "name=two")  # fmt: skip


def test_two_launchers_that_meet_make_one_run(workshop, launch, undisturbed, two_networks):
    """Two nodes, here two network namespaces, with an agent and a process each: the run of one agent with two."""
    (host, _), _ = two_networks
    agents = [
        launch(
            *agent(endpoint=f"{host}:29500", address=address, more=(f"--rdzv_conf=is_host={address == host}",)),
            cwd=workshop,
            through=(*entering, "env", "GLOO_SOCKET_IFNAME=cable"),
        )
        for address, entering in two_networks
    ]
    with not_outlived(*agents):
        for process in agents:
            _, stderr = process.communicate(timeout=180)
            assert process.returncode == 0, stderr
    assert_equal_runs(workshop / "checkpoint/two", undisturbed / "two")


@pytest.fixture
def two_networks() -> Iterator[list[tuple[str, tuple[str, ...]]]]:
    """Two network namespaces joined by a cable: the address in each, and the words that put a command there.

    They take no rights, because a user namespace owns them, and end with the processes that hold them, which end when
    this one closes their stdin or dies.
    """
    with ExitStack() as held:
        try:
            first = hold(held, "unshare", "--user", "--map-root-user", "--net")
            second = hold(held, *entering(first), "unshare", "--net")
            sides = [("10.77.0.1", entering(first)), ("10.77.0.2", entering(second))]
            within(first, f"ip link add cable type veth peer name cable netns {second}")
            for (address, _), pid in zip(sides, (first, second), strict=True):
                within(pid, f"ip address add {address}/24 dev cable && ip link set cable up && ip link set lo up")
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            pytest.skip(f"this system lets no ordinary user join network namespaces: {reason}")
        yield sides


def hold(held: ExitStack, *words: str) -> int:
    """Process id of what lives in the namespace that the words make."""
    words = (*words, "sh", "-c", "echo made; exec cat")
    pipe = subprocess.PIPE
    process = held.enter_context(subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
    if not process.stdout.readline():
        raise subprocess.CalledProcessError(process.wait(), words, stderr=process.stderr.read().strip())
    return process.pid


def entering(pid: int) -> tuple[str, ...]:
    return ("nsenter", "--target", str(pid), "--user", "--net", "--preserve-credentials")


def within(pid: int, script: str) -> None:
    subprocess.run([*entering(pid), "sh", "-c", script], check=True, capture_output=True, text=True)


def test_run_of_two_launchers_survives_the_death_of_a_process(workshop, launch, undisturbed):
    """Two agents on loopback, and a process that is killed: all start again, from the last state."""
    run, endpoint = workshop / "checkpoint/two", free_endpoint()
    words = agent(endpoint=endpoint, address="127.0.0.1", more=("--max-restarts=1",))
    agents = [launch(*words, cwd=workshop, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1) for _ in range(2)]
    with not_outlived(*agents):
        wait_until(lambda: newest_step(run) > 0, agents[0])
        os.kill(ranks_of(agents[1])[0], signal.SIGKILL)
        killed_s, killed_at = time.monotonic(), newest_step(run)
        wait_until(lambda: newest_step(run) > killed_at, agents[0])
        print(f"{time.monotonic() - killed_s:.1f} s from the death of a process to the next step")
        for process in agents:
            _, stderr = process.communicate(timeout=120)
            assert process.returncode == 0, stderr
    assert_equal_runs(run, undisturbed / "two")


def test_restarts_on_two_launchers_that_would_hang_are_refused(workshop, launch):
    """By train.py in the environment that the launchers give to their processes."""
    print_environment = ("--max-restarts=1", "--no-python", "sh", "-c", "env")
    words = agent(endpoint=free_endpoint(), address="127.0.0.1", more=print_environment)
    agents = [launch(*words, cwd=workshop) for _ in range(2)]
    with not_outlived(*agents):
        for process in agents:
            stdout, stderr = process.communicate(timeout=120)
            assert process.returncode == 0, stderr
            given = dict(line.split("=", 1) for line in stdout.splitlines() if "=" in line)
            rank = launch(*TRAIN, cwd=workshop, **given)
            _, stderr = rank.communicate(timeout=60)
            assert rank.returncode == 2
            assert "train.py: error: torchrun --max-restarts on several nodes needs TORCH_DISABLE_SHARE_" in stderr
