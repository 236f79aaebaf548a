"""Memory of tensors is counted while they are alive, and free memory is the lowest of all limits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sed_sr.models.rrdb import RRDBNet
from sed_sr.utils.runtime import memory
from sed_sr.utils.runtime.memory import TensorBytes, free_bytes

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


def test_tensors_count_while_they_are_alive():
    with TensorBytes() as counted:
        kept = torch.zeros(100)  # 400 bytes
        first = kept + 1  # 800
        del first
        second = kept.double()  # 1200
        view = second[10:]
        del second
        third = view[:50].clone()  # 1600
        del view
        kept.add_(third.sum())
    assert counted.peak == 1600


def test_tensors_from_before_the_block_do_not_count():
    layer = nn.Linear(1000, 1000)
    with torch.inference_mode(), TensorBytes() as counted:
        layer(torch.zeros(1, 1000))
    assert counted.peak == 2 * 1000 * 4


def test_memory_of_a_network_is_proportional_to_its_input():
    network = RRDBNet(features=8, blocks=1, growth=4).eval()
    peaks = []
    for side in (16, 32):
        lr = torch.zeros(1, 3, side, side)
        with torch.inference_mode(), TensorBytes() as counted:
            network(lr)
        peaks.append(counted.peak)
    assert peaks[1] == 4 * peaks[0]
    assert peaks[0] >= 16 * 16 * 16 * 4 * (8 + 8)  # two feature maps of SR size


def test_address_space_limit_counts():
    """A process that may allocate 300 MB more has at most that free."""
    script = (
        "import resource, torch; from sed_sr.utils.runtime.memory import free_bytes; "
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (now + 300_000_000, -1)); print(free_bytes(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert 250_000_000 < int(done.stdout) <= 300_000_000, done.stderr


def test_free_memory_is_below_the_total():
    assert 0 < free_bytes(CPU) < memory.total_bytes(CPU)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_lowest_control_group_limit_counts_and_cached_files_do_not(tmp_path, version, inside):
    """A job in a slice. In a container, the path is the host's and only the group of the container exists."""
    base = tmp_path if version == 2 else tmp_path / "memory"
    limit, used = (
        ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    prefix = "" if version == 2 else "total_"
    groups = {"": (1000, 900, 300)} if inside else {"slice": (1000, 900, 300), "slice/job": (5000, 100, 0), "": None}
    for name, numbers in groups.items():
        (base / name).mkdir(parents=True, exist_ok=True)
        if numbers is not None:
            (base / name / limit).write_text(f"{numbers[0]}\n")
            (base / name / used).write_text(f"{numbers[1]}\n")
            files = f"{prefix}active_file 100\n{prefix}inactive_file {numbers[2] - 100}\n" if numbers[2] else ""
            (base / name / "memory.stat").write_text(f"anon 7\n{files}")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/slice/job\n" if version == 2 else "5:cpu,cpuacct:/else\n4:memory:/slice/job\n")
    left = list(memory._cgroup_bytes(tmp_path, str(membership)))
    assert min(left) == 1000 - 900 + 300
    assert len(left) == len([numbers for numbers in groups.values() if numbers])


def test_control_group_without_a_limit(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    (tmp_path / "cgroup").write_text("0::/\n")
    assert list(memory._cgroup_bytes(tmp_path, str(tmp_path / "cgroup"))) == []
