"""Benchmarks are made from HR images in the published layouts, equal the published files, and are found."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sed_sr.data.benchmarks import find_benchmark
from sed_sr.data.images import read_rgb, read_unchanged, write_image, write_unchanged
from sed_sr.data.imresize import imresize
from sed_sr.data.prepare import jobs
from sed_sr.data.prepare.benchmark import find_ground_truth, main, write_pair
from sed_sr.options.errors import UserError

# HR images, and what lies beside them and is none.
LAYOUTS = {
    "flat": ("{}.png", "readme_{}.txt"),
    "bmp": ("{}.bmp", ".{}.png"),
    "kair": ("original/{}.png", "{}.png"),
    "basicsr, cut already": ("original/{}.png", "GTmod12/{}.png"),
    "swinir": ("GTmod12/{}.png", "LRbicx4/{}.png"),
    "edsr": ("HR/{}.png", "LR_bicubic/X4/{}x4.png"),
    "div2k": ("DIV2K_valid_HR/{}.png", "DIV2K_valid_LR_bicubic/X4/{}x4.png"),
    "selfexsr": ("image_SRF_4/{}_SRF_4_HR.png", "image_SRF_4/{}_SRF_4_LR.png"),
    "selfexsr, from inside": ("{}_SRF_4_HR.png", "{}_SRF_4_bicubic.png"),
    "side by side": ("{}_HR.png", "{}_LR.png"),
}
WRITE = {"scale": 4, "compression_level": 1, "resume": False}


def noise(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prepare(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "data.prepare.benchmark", "--n_thread", "2", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("hr", "other"), LAYOUTS.values(), ids=LAYOUTS)
def test_hr_images_of_a_layout_are_found_and_get_plain_names(tmp_path, hr, other):
    names = ("baby", "img_001")
    for name in names:
        for pattern in (hr, other):
            path = tmp_path / pattern.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    _, named = find_ground_truth(tmp_path, scale=4)
    assert named == {tmp_path / hr.format(name): name for name in names}


@settings(max_examples=20, deadline=None)
@given(height=st.integers(12, 60), width=st.integers(12, 60), scale=st.sampled_from([2, 3, 4]))
def test_ground_truth_loses_less_than_12_px_and_lr_is_its_bicubic(tmp_path_factory, height, width, scale):
    root = tmp_path_factory.mktemp("benchmark")
    hr = noise(height, width)
    write_image(root / "hr.png", hr)
    folders = {"gt_folder": root / "GTmod12", "lr_folder": root / f"LRbicx{scale}"}
    assert write_pair((root / "hr.png", "a"), **folders, **{**WRITE, "scale": scale}) == 2
    gt, lr = read_rgb(root / "GTmod12/a.png"), read_rgb(root / f"LRbicx{scale}/a.png")
    assert gt.shape == (height - height % 12, width - width % 12, 3)
    np.testing.assert_array_equal(gt, hr[: gt.shape[0], : gt.shape[1]])
    assert lr.shape == (gt.shape[0] // scale, gt.shape[1] // scale, 3)
    np.testing.assert_array_equal(lr, imresize(gt, scale=1 / scale))


def rgba(path: Path) -> np.ndarray:
    pixels = np.dstack([noise(24, 24), noise(24, 24, seed=1)[:, :, 0]])
    Image.fromarray(pixels, "RGBA").save(path)
    return pixels[:, :, :3]


def grey(path: Path) -> np.ndarray:
    pixels = noise(24, 24)[:, :, 0]
    Image.fromarray(pixels, "L").save(path)
    return pixels[:, :, None].repeat(3, axis=2)


def palette(path: Path) -> np.ndarray:
    image = Image.fromarray(noise(24, 24)).quantize(16)
    image.save(path)
    return np.asarray(image.convert("RGB"))


def deep(path: Path) -> np.ndarray:
    pixels = noise(24, 24)
    write_unchanged(path, pixels[:, :, ::-1].astype(np.uint16) * 257)
    return pixels


@pytest.mark.parametrize("write", [rgba, grey, palette, deep])
def test_images_of_other_kinds_become_8_bit_rgb(tmp_path, write):
    hr = write(tmp_path / "hr.png")
    write_pair((tmp_path / "hr.png", "a"), gt_folder=tmp_path / "gt", lr_folder=tmp_path / "lr", **WRITE)
    for made, expected in (("gt/a.png", hr), ("lr/a.png", imresize(hr, scale=1 / 4))):
        stored = read_unchanged(tmp_path / made)
        assert (stored.dtype, stored.shape[2]) == (np.uint8, 3)
        np.testing.assert_array_equal(stored[:, :, ::-1], expected)


def test_command_makes_a_benchmark_and_names_failed_images(tmp_path):
    hr = tmp_path / "Urban100/image_SRF_4"
    for name, image in {"img_001": noise(49, 36), "img_002": noise(24, 40), "img_003": noise(11, 99)}.items():
        write_image(hr / f"{name}_SRF_4_HR.png", image)
        write_image(hr / f"{name}_SRF_4_LR.png", image[::4, ::4])
    (hr / "img_004_SRF_4_HR.png").write_bytes(b"no image")
    arguments = ("--input", tmp_path / "Urban100", "--name", "U", "--output", tmp_path / "Evaluation")

    done = prepare(*arguments)
    assert done.returncode == 1
    assert "4 HR images called *_HR" in done.stdout
    small, damaged = done.stderr.splitlines()
    assert "img_003_SRF_4_HR.png is 99x11, smaller than 12x12" in small
    assert "img_004_SRF_4_HR.png" in damaged
    benchmark = find_benchmark(tmp_path / "Evaluation", "U", scale=4)
    assert [image.name for image in benchmark.images] == ["img_001", "img_002"]
    np.testing.assert_array_equal(read_rgb(benchmark.images[0].hr), noise(49, 36)[:48])

    again = prepare(*arguments)
    assert again.returncode == 2
    assert "not empty" in again.stderr

    lr = benchmark.images[0].lr
    os.utime(benchmark.images[1].lr, (0, 0))
    lr.unlink()
    for small in ("img_003", "img_004"):
        (hr / f"{small}_SRF_4_HR.png").unlink()
    resumed = prepare(*arguments, "--resume")
    assert resumed.returncode == 0
    assert lr.exists()
    assert benchmark.images[1].lr.stat().st_mtime == 0


def test_resume_replaces_damaged_pairs_only(tmp_path):
    for seed, name in enumerate(("a", "b", "c")):
        write_image(tmp_path / f"hr/{name}.png", noise(48, 48, seed=seed))
    arguments = ("--input", tmp_path / "hr", "--name", "U", "--output", tmp_path)
    assert "were damaged" not in prepare(*arguments).stdout
    paths = sorted((tmp_path / "U").rglob("*.png"))
    whole = {path: path.read_bytes() for path in paths}
    gt, lr = tmp_path / "U/GTmod12/a.png", tmp_path / "U/LRbicx4/b.png"
    gt.write_bytes(whole[gt][:1000] + bytes(500) + whole[gt][1500:])
    lr.write_bytes(b"")
    of_c = [path for path in paths if path.stem == "c"]
    for path in of_c:
        os.utime(path, (0, 0))

    done = prepare(*arguments, "--resume")
    assert done.returncode == 0
    assert "; 2 files of an earlier run were damaged and made again" in done.stdout
    assert {path: path.read_bytes() for path in paths} == whole
    assert [path.stat().st_mtime for path in of_c] == [0, 0]


def test_pairs_are_flushed_together_at_the_end_and_not_one_by_one(tmp_path, monkeypatch):
    write_image(tmp_path / "hr/a.png", noise(48, 48))
    output, flushed = tmp_path / "U", []

    def note(folders):
        flushed.append((folders, len(list(output.rglob("*.png")))))

    monkeypatch.setattr(jobs, "flush_file_systems", note)
    arguments = ("--input", tmp_path / "hr", "--name", "U", "--output", tmp_path, "--n_thread", 1)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    assert main() == 0
    assert flushed == [([output / "GTmod12", output / "LRbicx4"], 2)]

    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("a file was flushed by itself"))
    write_pair((tmp_path / "hr/a.png", "b"), gt_folder=output / "GTmod12", lr_folder=output / "LRbicx4", **WRITE)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--input", "absent", "--name", "a"], "cannot read the image folder absent"),
        (["--input", "empty", "--name", "a"], "no image in empty"),
        (["--input", "twins", "--name", "a"], "a.jpg and a.png in twins would both be written as a.png"),
        (["--input", "Set5", "--name", "Set5", "--output", "."], "Set5/GTmod12 is given for something else too"),
        (["--input", "Set5", "--name", "a/b"], "--name is 'a/b'"),
        (["--input", "Set5", "--name", ".."], "--name is '..'"),
        (["--input", "Set5", "--name", ""], "--name is ''"),
        (["--input", "Set5", "--name", "x" * 300, "--output", "."], "cannot use the output folder"),
    ],
)
def test_unusable_arguments_are_user_errors(tmp_path, monkeypatch, arguments, sentence):
    for name in ("empty", "twins", "Set5/GTmod12"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("twins/a.png", "twins/a.jpg", "Set5/GTmod12/a.png"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(UserError) as caught:
        main()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "Evaluation").rglob("*.png"))
