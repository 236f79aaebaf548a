"""Exported files give the same images in other tools and keep their record."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import spandrel
import torch

from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.export import FORMATS, Format, export, main
from sed_sr.utils.weights.generator_file import load_generator, open_generator_file
from tests.spandrel_networks import NETWORKS as OTHER_NETWORKS

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # in spandrel

ROOT = Path(__file__).parents[3]
RRDB = {"features": 4, "blocks": 1, "growth": 32}  # spandrel supports no other growth
SWINIR = {"embed_dim": 12, "depths": (2,), "heads": (2,), "window": 4}
NETWORKS = {
    "rrdb": lambda: RRDBNet(**RRDB),
    "swinir": lambda: SwinIR(**SWINIR),
    "swinir for photographs": lambda: SwinIR(**SWINIR, upsampler="nearest+conv"),
}
WEIGHTS = ("safetensors", "pth-basicsr", "pth-esrgan")  # formats of weights, not of programs
SIZES = ((1, 17, 23), (3, 8, 8), (1, 5, 40), (2, 1, 1))  # batch, height, width; others than the export compares


def lr_images(batch, height, width):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def image_of(network, *size):
    with torch.inference_mode():
        return network.eval()(lr_images(*(size or (1, 16, 16))))


def written_by_us(name, folder):
    """A file with `params` and `params_ema`, and the networks of both."""
    params, params_ema = NETWORKS[name](), NETWORKS[name]()
    options = {"name": "run_a", "generator": {"type": name[:6].strip()}}
    about = {"options": options, "step": 9, "scale": 4, "scores": {"Set5": {"psnr": 30.5}}, "scored_step": 6}
    states = {"params": params.state_dict(), "params_ema": params_ema.state_dict()}
    checkpoint.save_generator(folder / "net.pth", **states, **about)
    return folder / "net.pth", params, params_ema


def exported(path, to, output, **choice):
    export(open_generator_file(path, **choice), FORMATS[to], output)
    return output


@pytest.mark.parametrize("to", WEIGHTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_give_the_same_image_in_another_tool_and_can_be_read_back(name, to, tmp_path):
    path, _, network = written_by_us(name, tmp_path)
    output = exported(path, to, tmp_path / f"out{FORMATS[to].suffix}")
    other = spandrel.ModelLoader().load_from_file(output)
    assert other.scale == 4
    torch.testing.assert_close(image_of(other.model), image_of(network), rtol=1e-4, atol=1e-5)
    again, state = open_generator_file(output), network.state_dict()
    assert again.weights.state.keys() == state.keys()
    assert all(torch.equal(again.weights.state[key], value) for key, value in state.items())
    assert torch.equal(image_of(load_generator(again)), image_of(network))


@pytest.mark.parametrize("to", ["safetensors", "pth-basicsr"])
def test_record_of_a_file_is_exported(to, tmp_path):
    path, params, _ = written_by_us("rrdb", tmp_path)
    before = open_generator_file(path)
    for entry in (None, "params"):
        after = open_generator_file(exported(path, to, tmp_path / "out", entry=entry))
        assert (after.record, after.name, after.scores) == (before.record, "run_a", {"Set5": {"psnr": 30.5}})
        assert after.weights.entry == (entry or "params_ema")
    assert torch.equal(image_of(load_generator(after)), image_of(params))


def test_names_are_those_of_the_other_tools(tmp_path):
    path, *_ = written_by_us("rrdb", tmp_path)
    basicsr = torch.load(exported(path, "pth-basicsr", tmp_path / "out"), weights_only=True)["params_ema"]
    esrgan = torch.load(exported(path, "pth-esrgan", tmp_path / "out"), weights_only=True)
    with safetensors.safe_open(exported(path, "safetensors", tmp_path / "out"), framework="pt") as file:
        assert set(file.keys()) == set(esrgan)
    around = ("conv_body", "conv_up1", "conv_up2", "conv_hr"), ("trunk_conv", "upconv1", "upconv2", "HRconv")
    for names, state, block in zip(around, (basicsr, esrgan), ("body.0.rdb{}", "RRDB_trunk.0.RDB{}"), strict=True):
        layers = {"conv_first", "conv_last", *names}
        layers |= {f"{block.format(j)}.conv{k}" for j in (1, 2, 3) for k in range(1, 6)}
        assert set(state) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_files_of_other_projects_are_exported(tmp_path):
    network = NETWORKS["rrdb"]()
    path, *_ = written_by_us("rrdb", tmp_path)
    torch.save({"netG." + name: value.half() for name, value in network.state_dict().items()}, path)
    rounded = load_generator(open_generator_file(path))
    other = spandrel.ModelLoader().load_from_file(exported(path, "pth-basicsr", tmp_path / "out.pth")).model
    torch.testing.assert_close(image_of(other), image_of(rounded), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rrdb", "swinir"])
def test_onnx_gives_the_same_images_of_every_size_in_onnxruntime(name, tmp_path):
    path, _, network = written_by_us(name, tmp_path)
    output = exported(path, "onnx", tmp_path / "out.onnx")
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("out")] == ["out.onnx"]
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    for size in SIZES:
        (sr,) = session.run(["sr"], {"lr": lr_images(*size).numpy()})
        np.testing.assert_allclose(sr, image_of(network, *size).numpy(), rtol=0, atol=1e-4)
    model = onnx.load(output)
    onnx.checker.check_model(model, full_check=True)
    (record,) = [entry.value for entry in model.metadata_props if entry.key == "sed_record"]
    assert json.loads(record) == open_generator_file(path).record
    with pytest.raises(UserError, match=r"out\.onnx is an ONNX program"):
        open_generator_file(output)
    assert str(ROOT).encode() not in output.read_bytes()


@pytest.mark.parametrize("name", ["rrdb", "swinir for photographs"])
def test_torchscript_gives_the_same_images_of_every_size(name, tmp_path):
    path, _, network = written_by_us(name, tmp_path)
    output = exported(path, "torchscript", tmp_path / "out.pt")
    record = {"sed_record": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its deprecation
        program = torch.jit.load(output, _extra_files=record)
    for size in SIZES:
        torch.testing.assert_close(image_of(program, *size), image_of(network, *size), rtol=0, atol=1e-5)
    assert json.loads(record["sed_record"]) == open_generator_file(path).record
    with pytest.raises(UserError, match="is a TorchScript program"):
        open_generator_file(output)


def test_export_with_other_images_is_not_written(tmp_path):
    path, *_ = written_by_us("rrdb", tmp_path)
    (tmp_path / "out").write_text("existing file")
    torch.save(NETWORKS["rrdb"]().state_dict(), tmp_path / "another.pth")
    another = load_generator(open_generator_file(tmp_path / "another.pth"))
    for network in (another, lambda lr: another(lr)[..., 1:], lambda lr: another(lr) * float("nan")):
        wrong = Format("", "", lambda file, generator: b"", lambda path, network=network: network)
        with pytest.raises(UserError, match=r"out was not written: its images would differ"):
            export(open_generator_file(path), wrong, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "existing file"
    assert len(list(tmp_path.iterdir())) == 3


def test_command_prints_what_it_read_and_wrote(tmp_path):
    path, *_ = written_by_us("rrdb", tmp_path)
    command = [sys.executable, "-m", "utils.weights.export", str(path), "--to", "onnx", "--weights", "params"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    read, wrote = done.stdout.splitlines()
    assert read.startswith(f"{path}: RRDB (1 block, 4 features, growth 32), x4, in SeD names, from 'params'; run_a")
    assert read.endswith("; Set5 psnr 30.5 (at step 6)")
    assert wrote.startswith(f"{path.with_suffix('.onnx')}: onnx, ")
    assert "its images differ from the network's by at most " in wrote


@pytest.mark.parametrize(
    ("file", "output", "message"),
    [
        ("net.pth", "net.pth", r"net\.pth is the file to export"),
        ("net.pth", "link.pth", r"link\.pth is the file to export"),
        ("net.pth", "folder", r"cannot write .*folder: Is a directory"),
        ("net.pth", "net.pth/out.pth", r"cannot write .*out\.pth: File exists"),
        ("net.pth", 300 * "x", "cannot write .*x: File name too long"),
        ("other.pth", "out.pth", r"other\.pth holds weights of an unknown architecture"),
    ],
)
def test_mistake_is_one_sentence_and_nothing_is_written(file, output, message, tmp_path, monkeypatch):
    path, *_ = written_by_us("rrdb", tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.pth").symlink_to(path)
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pth")
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.iterdir()}
    arguments = [tmp_path / file, "--to", "pth-basicsr", "--output", tmp_path / output]
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    with pytest.raises(UserError, match=message):
        main()
    assert before == {path: path.lstat().st_mtime_ns for path in tmp_path.iterdir()}


def test_missing_library_is_reported_with_how_to_install_it(tmp_path, monkeypatch):
    path, *_ = written_by_us("rrdb", tmp_path)
    for library in ("onnxscript", "onnx"):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UserError, match=rf"needs {library}, which is not installed: pip install onnx "):
            exported(path, "onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.fixture
def other(tmp_path):
    """Writes the weights of one of spandrel's networks, whose image has contrast."""

    def write(name):
        torch.manual_seed(0)
        state = OTHER_NETWORKS[name]().state_dict()
        last = next(key for key in reversed(state) if key.endswith("weight"))
        state[last] *= 100
        torch.save({"params": state}, tmp_path / f"{name}.pth")
        return tmp_path / f"{name}.pth"

    return write


@pytest.mark.parametrize("to", ["safetensors", "pth-basicsr", "torchscript"])
def test_other_networks_are_exported(other, to, tmp_path):
    path, output = other("Compact"), tmp_path / f"out{FORMATS[to].suffix}"
    lr = lr_images(1, 17, 23)
    expected = spandrel.ModelLoader().load_from_file(path)(lr)
    program = FORMATS[to].open(exported(path, to, output))
    with torch.inference_mode():
        torch.testing.assert_close(program(lr).clamp(0, 1), expected)
    if to != "torchscript":
        torch.testing.assert_close(spandrel.ModelLoader().load_from_file(output)(lr), expected)


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("SPAN", "onnx", r"SPAN\.pth cannot be exported to ONNX: SPAN .*, x4, replaces parameters when it runs"),
        ("HAT", "torchscript", r"its images would differ from those of \S+HAT\.pth by up to"),  # computes masks by size
        ("SPAN", "pth-esrgan", r"SPAN\.pth cannot be detected from its tensors alone as RRDB or SwinIR"),
    ],
)
def test_other_networks_that_an_exporter_cannot_handle_are_refused(other, name, to, message, tmp_path):
    with pytest.raises(UserError, match=message):
        exported(other(name), to, tmp_path / "out")
    assert not (tmp_path / "out").exists()
