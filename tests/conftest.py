"""A small workshop: photographs prepared as a training set and a benchmark, and the commands of a user.

And what tests of stopping and going on share: a run that nothing disturbed, and whether another one is the same.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import skimage.data
import torch
import yaml
from huggingface_hub import constants
from PIL import Image

from tests.forked import Forked, can_fork
from tests.hub_server import WRITE, Hub, running_hub

ROOT = Path(__file__).parents[1]
STEPS = 6
# From the middle of one epoch into the next: there are 23 pairs or so, and two processes take two of them each.
EXACT = ("--set", "dataloader.num_workers=2", "--set", f"train.total_steps={STEPS}", "--set",
         "train.save_every_steps=1", "--set", "validation.every_steps=3", "--resume", "auto")  # fmt: skip
TRAIN = ("train.py", "--opt", "swinir_P+SeD.yml", *EXACT)  # SwinIR's stochastic depth draws random numbers
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
Command = Callable[..., subprocess.CompletedProcess]
Launch = Callable[..., subprocess.Popen | Forked]


@pytest.fixture(scope="session", autouse=True)
def no_weights_of_others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What torch.hub and huggingface_hub have downloaded on this machine changes no test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch_home")))
        patch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hf_hub_cache")))
        yield


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hugging Face hub on this machine, for this process and new ones, with an empty cache and a token."""
    with running_hub() as server:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "SED_OFFLINE"):
                patch.delenv(name, raising=False)
            patch.setenv("HF_ENDPOINT", server.url)
            patch.setenv("HF_HOME", str(tmp_path / "hf_home"))
            patch.setenv("HF_TOKEN", WRITE)
            patch.setenv("HF_HUB_DISABLE_XET", "1")  # a protocol that the server does not speak
            patch.setenv("no_proxy", "127.0.0.1")
            importlib.reload(constants)  # it reads the variables
            yield server
        importlib.reload(constants)


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    """TF32 wherever PyTorch has it, as a program around this one may allow it."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.fixture(scope="session")
def launch(no_weights_of_others: None) -> Launch:
    """Starts `python ...` in a folder; a script of the project is named by its file."""

    def start(
        *arguments: object, cwd: Path, through: Sequence[str] = (), new: bool = False, **variables: object
    ) -> subprocess.Popen | Forked:
        """Scripts and modules start in a forked process, which is quick.

        Args:
            through: a command that becomes the one that is written behind it, such as nsenter.
            new: start a new interpreter, which imports PyTorch for itself.
            variables: further variables of the environment.
        """
        words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        env |= {name: str(value) for name, value in variables.items()}
        if not (through or new) and can_fork(words):
            return Forked(words, cwd=cwd, env=env)
        return subprocess.Popen(
            [*through, sys.executable, *words],
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # where the tests run in the background of a shell, Ctrl-C would be ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return start


@pytest.fixture(scope="session")
def launch_ranks(launch: Launch) -> Callable[..., list[Forked]]:
    """Starts the processes of one run as torchrun does, but without torchrun; each in one of the folders."""

    def start(*arguments: object, folders: Sequence[Path]) -> list[Forked]:
        host, port = free_endpoint().split(":")
        about = {"WORLD_SIZE": len(folders), "MASTER_ADDR": host, "MASTER_PORT": port}
        return [
            launch(*arguments, cwd=folder, RANK=rank, LOCAL_RANK=rank, **about) for rank, folder in enumerate(folders)
        ]

    return start


@pytest.fixture(scope="session")
def command(launch: Launch, launch_ranks: Callable[..., list[Forked]]) -> Command:
    """Runs `python ...` to its end, in one process or as the processes of one run; the exit code is the largest."""

    def run(
        *arguments: object, cwd: Path, timeout_s: int = 240, processes: int = 1, new: bool = False
    ) -> subprocess.CompletedProcess:
        if processes > 1:
            started = launch_ranks(*arguments, folders=[cwd] * processes)
        else:
            started = [launch(*arguments, cwd=cwd, new=new)]
        with not_outlived(*started):
            said = [process.communicate(timeout=timeout_s) for process in started]
        stdout, stderr = map("".join, zip(*said, strict=True))
        code = max((process.returncode for process in started), key=abs)
        return subprocess.CompletedProcess(started[0].args, code, stdout, stderr)

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """DF2K/ and Evaluation/ as the commands make them from photographs, one of them of odd sides. Not to be changed."""
    root = tmp_path_factory.mktemp("prepared")
    astronaut, coffee, cat = skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()
    photos = {
        "DF2K/train/0001.png": astronaut[:192, 100:292],
        "DF2K/train/0002.png": coffee[:161, :190],
        "DF2K/train/0003.png": astronaut[250:410, :256],
        "Evaluation/Photos/GTmod12/cat.png": cat[100:196, 100:220],
        "Evaluation/Photos/GTmod12/cup.png": coffee[150:234, 200:320],
        "Evaluation/Photos/GTmod12/spoon.png": coffee[250:346, 300:396],
    }
    for name, photo in photos.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(root / name)
    tiles, photos = ["extract_subimages.py", "--n_thread", 1], "Evaluation/Photos"
    for arguments in (
        ("-m", "data.prepare.lr_images", "--input", "DF2K/train", "--output", "DF2K/train_x4", "--n_thread", 1),
        ("-m", "data.prepare.lr_images", "--input", f"{photos}/GTmod12", "--output", f"{photos}/LRbicx4"),
        (*tiles, "--input", "DF2K/train", "--output", "DF2K/train_sub", "--crop_size", 96, "--step", 48),
        (*tiles, "--input", "DF2K/train_x4", "--output", "DF2K/train_sub_x4", "--crop_size", 24, "--step", 12),
    ):
        done = command(*arguments, cwd=root)
        assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def workshop(tmp_path: Path, make_workshop: Callable[[Path], Path]) -> Path:
    """A folder of one's own with DF2K/ and Evaluation/ in it, and option files for tiny networks."""
    return make_workshop(tmp_path)


@pytest.fixture(scope="session")
def make_workshop(prepared: Path) -> Callable[[Path], Path]:
    """Makes a workshop of an empty folder."""
    return partial(_furnish, prepared=prepared)


def _furnish(root: Path, *, prepared: Path) -> Path:
    for folder in ("DF2K", "Evaluation"):
        (root / folder).symlink_to(prepared / folder)
    tiny = {
        "rrdb": {"type": "rrdb", "features": 8, "blocks": 1, "growth": 4},
        "swinir": {"type": "swinir", "embed_dim": 12, "depths": [2], "heads": [2], "window": 4},
    }
    for recipe in (ROOT / "options").glob("train_*.yml"):
        generator = tiny[recipe.stem.split("_")[1]]
        options = {
            "extends": str(recipe),
            "name": recipe.stem.removeprefix("train_"),
            "device": "cpu",
            "generator": generator,
            "dataset": {"hr_patch_px": 64},
            "dataloader": {"batch_size": 2, "num_workers": 1},
            "optimizer": {"learning_rate": 1e-3, "milestones": [3]},
            "train": {"total_steps": 4, "total_batch_size": None, "log_every_steps": 1, "save_every_steps": 2},
            "validation": {"every_steps": 2, "benchmarks": ["Photos"]},
        }
        if recipe.stem.endswith("_x3"):
            options["dataset"]["hr_patch_px"] = 96
        if recipe.stem.endswith(("_ESRGAN", "_LDL")):  # with a discriminator for patches larger than the sub-images
            options["dataset"] = {"hr_patch_px": 128, "hr": "train", "lr": "train_x4"}
        if "_real" in recipe.stem:
            options["dataset"]["hr"] = "train_sub"
            options["degradation"] = {"hr_px": 80, "pool_pairs": 4}
        if "_psnr" not in recipe.stem:
            options["discriminator"] = {"features": 8}
            options["semantic_extractor"] = {"weights": "random"}
            options["losses"] = {"perceptual": {"weights": "random", "layers": {"conv2_2": 1.0}}}
        (root / f"{options['name']}.yml").write_text(yaml.safe_dump(options))
    return root


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, prepared, command, make_workshop) -> Path:
    """A run of one process and a run of two, to their ends."""
    root = make_workshop(tmp_path_factory.mktemp("undisturbed"))
    finished(command(*TRAIN, "--set", "name=one", cwd=root))
    finished(command(*TRAIN, "--set", "name=two", cwd=root, processes=2))
    return root / "checkpoint"


def free_endpoint() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def finished(done: subprocess.CompletedProcess, *expected: str) -> str:
    assert done.returncode == 0, done.stderr + done.stdout
    for text in expected:
        assert text in done.stdout
    return done.stdout


def newest_step(run: Path) -> int:
    return max((int(path.stem.removeprefix("state_")) for path in (run / "states").glob("state_*.pth")), default=0)


def last_state(run: Path) -> dict:
    return torch.load(max((run / "states").glob("*.pth")), weights_only=True)


def figures(run: Path) -> list[dict]:
    """The lines of metrics.jsonl, without what a clock gave."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "images_per_s"} for line in lines if line["kind"] != "time"]


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_equal_runs(run: Path, undisturbed: Path) -> None:
    """Bit for bit: networks, moments, place in the data, scores, and every logged figure, once."""
    ours, theirs = last_state(run), last_state(undisturbed)
    assert ours["step"] == theirs["step"]
    assert same(ours["train_step"], theirs["train_step"])
    assert same(ours["loop"], theirs["loop"])
    assert figures(run) == figures(undisturbed)


@contextmanager
def not_outlived(*processes: subprocess.Popen):
    """The processes, launchers with all that they launched, do not outlive the block."""
    try:
        yield
    finally:
        for process in processes:
            children = children_of(process.pid)
            process.kill()
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            process.communicate()


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ranks_of(launcher: subprocess.Popen) -> list[int]:
    """Process ids of the training processes, by their ranks."""
    ranks = {}
    for child in children_of(launcher.pid):
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found = [word for word in environment if word.startswith(b"RANK=")]
        if found:
            ranks[int(found[0][5:])] = child
    return [ranks[rank] for rank in sorted(ranks)]


def children_of(process: int) -> list[int]:
    """Process ids of the children of a process; none where it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
