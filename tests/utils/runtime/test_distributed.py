"""Several processes compute what one would with all of their images, and report those that are missing."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.distributed import World, _store_of_this_attempt, _wait_for_all, joined_world

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run_script(command, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a script of tests/scripts in one process or several."""
    return lambda script, *arguments, processes: command(
        f"tests/scripts/{script}", *arguments, cwd=tmp_path, processes=processes
    )


def test_two_ranks_of_two_images_have_the_gradients_of_one_rank_of_four_and_stay_equal(tmp_path, run_script):
    results = []
    for processes in (1, 2):
        output = tmp_path / f"{processes}.pth"
        done = run_script("first_gradient.py", output, processes=processes)
        assert done.returncode == 0, done.stderr
        results.append(torch.load(output, weights_only=True))
    one, two = results
    assert (len(one["gathered"]), len(two["gathered"])) == (1, 2)
    assert one["terms"] == pytest.approx(two["terms"], rel=1e-4)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert two["sums"] == 1, "all gradients of a step are summed at once"
    first, second = two["gathered"]
    for name, network in first.items():
        for key, tensor in network.items():  # the vectors of spectral norm among them, which no rank sends
            assert torch.equal(tensor, second[name][key]), f"{name}.{key} differs between the ranks"


def test_mistake_of_one_rank_ends_all_of_them_and_is_reported_once(run_script):
    done = run_script("disagree.py", processes=2)
    assert done.returncode != 0
    assert done.stderr.count("rank 1 found a mistake") == 1
    assert "went on" not in done.stdout


def test_ranks_that_differ_are_named(run_script):
    done = run_script("differ.py", processes=3)
    assert done.returncode != 0
    assert "the processes of this run differ: the step is 5 in process 0 but 3 in process 1, 2" in done.stderr
    assert done.stdout.count("the same is the same") == 3
    assert "went on" not in done.stdout


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_broken_batch_of_one_rank_is_skipped_by_all(tmp_path, run_script, broken):
    """Networks, optimiser states and the moving average do not change on either rank."""
    done = run_script("guarded_steps.py", tmp_path / "steps.pth", broken, processes=2)
    assert done.returncode == 0, done.stderr
    ranks = torch.load(tmp_path / "steps.pth", weights_only=True)
    named = {"loss": {"pixel", "generator_gradient"}, "gradient": {"generator_gradient"}}[broken]
    for rank in ranks:
        assert named <= set(rank["broken"])
        assert ("pixel" in rank["broken"]) == ("pixel" in named)
        assert rank["kept"]
        assert rank["moves_again"]
        assert rank["sums_of_three_batches"] == 1
    assert [rank["broken_here"] for rank in ranks] == [[], ["pixel", "gan", "d_loss"] if broken == "loss" else []]


def test_restarted_process_does_not_see_the_keys_of_an_earlier_attempt(monkeypatch):
    """torchrun's store outlives the processes; here the test stands in for torchrun."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "1",
        "GROUP_WORLD_SIZE": "1",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    seen = []
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        ours = _store_of_this_attempt(World(rank=1, size=2))
        seen.append(ours.check(["address"]))
        ours.set("address", attempt)
        assert ours.check(["address"])
    assert seen == [False, False]


@pytest.fixture
def address(monkeypatch) -> str:
    """A free address, set in the environment as a launcher does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return f"127.0.0.1:{port}"


def test_waiting_process_reports_the_missing_one_once_and_continues_when_it_joins(address, monkeypatch, capfd):
    """The other one is late because Python and PyTorch take seconds to start."""
    monkeypatch.setattr("sed_sr.utils.runtime.distributed.NOTICE_AFTER_S", 0.3)
    script = (
        "from sed_sr.utils.runtime.distributed import joined_world\nwith joined_world() as world: world.gather('late')"
    )
    env = {"RANK": "1", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **env}) as late:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        try:
            with joined_world() as world:
                assert world.gather("early") == ["early", "late"]
            assert late.wait(timeout=60) == 0
        finally:
            late.kill()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("process")]
    assert re.fullmatch(
        r"process 0 has waited \d+ s for process 1, which has not joined this run of 2 processes; "
        r"it keeps waiting, up to 30 minutes in total",
        line,
    )


def test_late_main_process_is_waited_for_and_reported_with_its_address(address, monkeypatch, capfd):
    monkeypatch.setattr("sed_sr.utils.runtime.distributed.NOTICE_AFTER_S", 0.1)
    with ThreadPoolExecutor() as executor:
        waiting = executor.submit(_store_of_this_attempt, World(rank=1, size=2))
        time.sleep(0.3)
        store = _store_of_this_attempt(World(rank=0, size=2))
        waiting.result().set("said", "hello")
    assert store.get("said") == b"hello"
    (line,) = capfd.readouterr().err.splitlines()
    assert re.match(rf"process 1 has waited \d+ s for process 0 at {address}, which has not joined this run of 2", line)


def test_missing_processes_are_reported_by_one_of_the_waiting_ones_and_end_all_of_them(monkeypatch, capfd):
    monkeypatch.setattr("sed_sr.utils.runtime.distributed.NOTICE_AFTER_S", 0.2)
    monkeypatch.setattr("sed_sr.utils.runtime.distributed.TIMEOUT", timedelta(seconds=0.6))
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    clients = [dist.TCPStore("127.0.0.1", server.port, wait_for_workers=False) for _ in range(2)]
    with ThreadPoolExecutor() as executor:
        ends = [
            executor.submit(_wait_for_all, store, World(rank=rank, size=4))
            for store, rank in zip(clients, (0, 2), strict=True)
        ]
        for end, rank in zip(ends, (0, 2), strict=True):
            sentence = rf"process {rank} has waited \d+ s for processes 1 and 3, which have not joined this run of 4"
            with pytest.raises(UserError, match=sentence):
                end.result()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "for processes 1 and 3, which have not joined" in lines[0]


def test_missing_main_process_is_reported_with_its_address(address, monkeypatch, capfd):
    monkeypatch.setattr("sed_sr.utils.runtime.distributed.NOTICE_AFTER_S", 0.1)
    monkeypatch.setattr("sed_sr.utils.runtime.distributed.TIMEOUT", timedelta(seconds=0.3))
    with pytest.raises(
        UserError, match=rf"process 1 has waited \d+ s for process 0 at {address}, which has not joined"
    ):
        _store_of_this_attempt(World(rank=1, size=2))
    assert len(capfd.readouterr().err.splitlines()) == 1, "and no C++ frames"


def test_processes_that_have_all_joined_do_not_wait(monkeypatch, capfd):
    monkeypatch.setattr("sed_sr.utils.runtime.distributed.NOTICE_AFTER_S", 0.0)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for rank in range(1, 64):
        store.set(f"joined/{rank}", "")
    start_s = time.monotonic()
    _wait_for_all(store, World(rank=0, size=64))
    assert time.monotonic() - start_s < 2
    assert capfd.readouterr().err == ""


def test_address_that_cannot_be_served_or_is_not_set_is_reported(address, monkeypatch):
    host, _, port = address.partition(":")
    with socket.create_server((host, int(port))), pytest.raises(UserError, match=f"process 0 cannot serve {address} "):
        _store_of_this_attempt(World(rank=0, size=2))
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match="but not MASTER_ADDR and MASTER_PORT"):
        _store_of_this_attempt(World(rank=0, size=2))


def test_single_process_needs_no_group():
    world = World()
    assert world.gather("x") == ["x"]
    assert world.mean({"a": 2.0}) == {"a": 2.0}
    with pytest.raises(UserError, match="sentence"), world.raise_together():
        raise UserError("sentence")


def test_missing_gpu_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="no CUDA device"):
        World().device("cuda")


def test_more_processes_than_gpus_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="at most 2 processes"):
        World(rank=2, size=4, local_rank=2).device("auto")
