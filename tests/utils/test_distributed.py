"""Many processes do what one would do with all of their images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from utils.distributed import World, _store_of_this_attempt
from utils.errors import UserError

ROOT = Path(__file__).parents[2]


def run_script(script: str, *arguments: object, processes: int) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return subprocess.run(
        [sys.executable, *launcher, str(ROOT / "tests/scripts" / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_ranks_of_two_images_have_the_gradients_of_one_rank_of_four_and_stay_equal(tmp_path):
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


def test_mistake_of_one_rank_ends_all_of_them_and_is_told_once():
    done = run_script("disagree.py", processes=2)
    assert done.returncode != 0
    assert done.stderr.count("rank 1 found a mistake") == 1
    assert "went on" not in done.stdout


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_broken_batch_of_one_rank_is_skipped_by_all(tmp_path, broken):
    """Both networks, their moments and counters, and the average stay as they were on both ranks."""
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


def test_restarted_process_does_not_see_what_those_before_it_have_said(monkeypatch):
    """torchrun's store outlives the processes; here the test is torchrun."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    about = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "1",
        "GROUP_WORLD_SIZE": "1",
    }
    for name, value in about.items():
        monkeypatch.setenv(name, value)
    seen = []
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        ours = _store_of_this_attempt(World(rank=1, size=2))
        seen.append(ours.check(["address"]))
        ours.set("address", attempt)
        assert ours.check(["address"])
    assert seen == [False, False]


def test_single_process_needs_no_group():
    world = World()
    assert world.gather("x") == ["x"]
    assert world.mean({"a": 2.0}) == {"a": 2.0}
    with pytest.raises(UserError, match="sentence"), world.agree():
        raise UserError("sentence")


def test_asking_for_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="no CUDA device"):
        World().device("cuda")


def test_more_processes_than_gpus_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="at most 2 processes"):
        World(rank=2, size=4, local_rank=2).device("auto")
