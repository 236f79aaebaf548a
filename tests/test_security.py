"""No input is ever executed: weights, options and file names are data, whatever they contain."""

import json
import os
import pickle
import runpy
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, but RN50.pt is a TorchScript file

ROOT = Path(__file__).parents[1]
PSNR, SED = "train.py --opt rrdb_psnr.yml", "train.py --opt rrdb_P+SeD.yml"
TEST = "test.py --opt rrdb_psnr.yml --benchmarks Photos"
LPIPS = "--weights bicubic --metrics lpips"
UPSCALE = "test.py --opt rrdb_psnr.yml --weights bicubic --output_path out --benchmarks"
CUT = "extract_subimages.py --n_thread 1 --crop_size 16 --step 16 --output out --input"
SHRINK = "-m data.prepare.lr_images --n_thread 1 --output out --input"
CANARY = "canary"  # a file that payloads create in the working directory


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


class Program(torch.nn.Module):
    """Writes a file when it is loaded as TorchScript."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight, self.training = state
        torch.save(self.weight, "canary")  # TorchScript cannot use global names

    def forward(self, x):
        return x


def write_zip(path):
    torch.save({"params": {"weight": torch.zeros(1)}, "more": Payload()}, path)


def write_legacy(path):
    torch.save({"params": Payload()}, path, _use_new_zipfile_serialization=False)


def write_bare_pickle(path):
    path.write_bytes(pickle.dumps(Payload()))


def write_torchscript(path):
    torch.jit.script(Program()).save(path)


PICKLES = [write_zip, write_legacy, write_bare_pickle]


@pytest.fixture
def canary(workshop, monkeypatch) -> Path:
    """The file that payloads create, beside an empty pretrained/."""
    monkeypatch.chdir(workshop)
    (workshop / "pretrained").mkdir()
    return workshop / CANARY


@pytest.fixture
def call(workshop, command, monkeypatch, capsys):
    """Runs a command in the workshop; train.py and test.py in this process, where PyTorch is imported already."""

    def run(words: str, *more: str) -> subprocess.CompletedProcess:
        script, *arguments = words.split()
        if script not in ("train.py", "test.py"):
            return command(script, *arguments, *more, cwd=workshop)
        monkeypatch.chdir(workshop)
        monkeypatch.setattr(sys, "argv", [script, *arguments, *more])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return subprocess.CompletedProcess(words, ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(canary, call):
    """Runs a command; asserts that it ends with one sentence and creates no canary; returns the sentence."""

    def run(words: str, *more: str) -> str:
        done = call(words, *more)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"{words.split()[0]}: error: ")
        assert "Traceback" not in done.stdout + done.stderr
        assert not canary.exists()
        return done.stderr

    return run


def test_payloads_work_if_they_are_executed(canary):
    """Unsafe readers execute them, so the tests below would detect it."""
    for write, read in (
        (write_zip, lambda path: torch.load(path, weights_only=False)),
        (write_legacy, lambda path: torch.load(path, weights_only=False)),
        (write_bare_pickle, lambda path: pickle.loads(path.read_bytes())),
        (write_torchscript, torch.jit.load),
    ):
        path = canary.with_name("payload.pth")
        write(path)
        assert not canary.exists()
        read(path)
        assert canary.exists(), write
        canary.unlink()


@pytest.mark.parametrize("write", [*PICKLES, write_torchscript])
@pytest.mark.parametrize(
    "words",
    [
        f"{PSNR} --resume evil.pth",
        f"{TEST} --weights evil.pth",
        f"{SED} --set semantic_extractor.weights=evil.pth",
        f"{SED} --set losses.perceptual.weights=evil.pth",
    ],
)
def test_code_in_a_weight_file_is_never_executed(canary, refused, words, write):
    write(canary.with_name("evil.pth"))
    assert "evil.pth" in refused(words)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (f"{SED} --set semantic_extractor.weights=RN50.pt", "RN50.pt"),
        (f"{SED} --set losses.perceptual.weights=vgg19-dcbb9e9d.pth", "vgg19-dcbb9e9d.pth"),
        (f"{TEST} {LPIPS}", "alexnet-owt-7be5be79.pth"),
    ],
)
@pytest.mark.parametrize("write", [write_zip, write_torchscript])
def test_published_name_is_trusted_only_with_its_hash(canary, refused, words, name, write):
    write(canary.with_name("pretrained") / name)
    sentence = refused(words)
    assert name in sentence
    assert "sha256" in sentence


@pytest.mark.parametrize("write", PICKLES)
def test_training_state_is_not_trusted_either(canary, refused, write):
    states = canary.with_name("checkpoint") / "rrdb_psnr/states"
    states.mkdir(parents=True)
    write(states / "state_000000001.pth")
    assert "state_000000001.pth" in refused(f"{PSNR} --resume auto")


@pytest.mark.parametrize(
    "value",
    [
        f"!!python/object/apply:os.system ['touch {CANARY}']",
        f"!!python/object/new:os.system ['touch {CANARY}']",
        f"!!python/object/apply:os.system {{args: ['touch {CANARY}']}}",
        "!!python/name:os.system",
        "!!python/module:os",
        f"$(touch {CANARY})",
        f"`touch {CANARY}`",
        f"{{{{ __import__('os').system('touch {CANARY}') }}}}",
        f"__import__('os').system('touch {CANARY}')",
    ],
)
def test_options_are_never_evaluated(canary, refused, value):
    refused(PSNR, "--set", f"name={value}")
    recipe = canary.with_name("recipe.yml")
    recipe.write_text(f"extends: rrdb_psnr.yml\nname: {value}\n")
    assert "recipe.yml" in refused("train.py --opt recipe.yml")


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/tmp/outside", "..", ".", ""])
def test_name_of_a_run_cannot_leave_its_folder(canary, refused, name):
    assert "name" in refused(PSNR, "--set", f"name='{name}'")


STRANGE = [
    b"plain",
    b".",
    b"...x",
    b"a\nforged: line",
    b"e\x1b[31mred\x1b]0;title\x07",
    b"caf\xe9",
    b"%s%n{0}",
    b"l" * 200,
]


@pytest.fixture
def strange(tmp_path):
    """A folder of images with unusual names, and a link to an image outside."""
    folder, outside = tmp_path / "strange", tmp_path / "outside.png"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(outside)
    for stem in STRANGE:
        (folder / os.fsdecode(stem + b".png")).write_bytes(outside.read_bytes())
    (folder / "link.png").symlink_to(outside)
    return folder


def files_below(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("words", "written_to"), [(CUT, "out"), (SHRINK, "out"), (UPSCALE, "out/bicubic/strange")])
def test_images_stay_in_the_output_folder_whatever_their_names(workshop, strange, call, words, written_to):
    before = files_below(workshop)
    done = call(f"{words} strange")
    assert done.returncode == 0, done.stderr
    after = files_below(workshop)
    assert {path: after[path] for path in before} == before  # the target of the link is read, never written
    new = [path for path in after.keys() - before.keys() if path.suffix == ".png"]
    assert {path.parent for path in new} == {workshop / written_to}
    assert not any(path.is_symlink() for path in new)
    assert (
        len(new) == len([stem for stem in STRANGE if not stem.startswith(b".")]) + 1
    )  # without hidden ones, with the link


def test_results_of_unusual_names_are_plain_json(workshop, strange, call):
    assert call(f"{UPSCALE} strange").returncode == 0
    (weights,) = json.loads((workshop / "out/results.json").read_text(encoding="ascii"))["weights"]
    images = weights["benchmarks"]["strange"]["images"]
    assert images.keys() == {path.stem for path in (workshop / "out/bicubic/strange").iterdir()}


@pytest.mark.parametrize("words", [CUT, SHRINK, UPSCALE])
def test_control_characters_of_a_name_are_never_printed(workshop, strange, call, words):
    for path in set(strange.iterdir()) - {strange / "plain.png"}:
        path.write_bytes(b"damaged")
    done = call(f"{words} strange")
    told = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Traceback" not in told
    assert not [char for char in told if unicodedata.category(char) in ("Cc", "Cs") and char != "\n"]
    assert "e\\x1b[31mred\\x1b]0;title\\x07.png" in told
    assert "caf\\udce9.png" in told


@pytest.mark.parametrize("words", [CUT, SHRINK, UPSCALE])
def test_name_that_is_too_long_to_write_is_one_sentence(workshop, strange, call, words):
    (workshop / "longest").mkdir()
    (workshop / "longest" / f"{'l' * 250}.png").write_bytes((strange / "plain.png").read_bytes())
    done = call(f"{words} longest")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot write" in done.stderr
