"""Benchmarks are found in the layouts in use, their images pair up by name, and what does not fit is told."""

from pathlib import Path

import pytest
from PIL import Image

from data.benchmarks import find_benchmark, find_inputs
from utils.errors import UserError


def image(path: Path, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side)).save(path)


LAYOUTS = {
    "swinir": ("GTmod12/{}.png", "LRbicx4/{}.png"),
    "swinir, scale in the name": ("GTmod12/{}.png", "LRbicx4/{}x4.png"),
    "edsr": ("HR/{}.png", "LR_bicubic/X4/{}x4.png"),
    "div2k": ("DIV2K_valid_HR/{}.png", "DIV2K_valid_LR_bicubic/X4/{}x4.png"),
    "selfexsr": ("image_SRF_4/{}_HR.png", "image_SRF_4/{}_LR.png"),
    "side by side": ("{}_HR.png", "{}_LR.png"),
}


@pytest.mark.parametrize(("hr", "lr"), LAYOUTS.values(), ids=LAYOUTS)
def test_layout_is_found_and_paired_by_name(tmp_path, hr, lr):
    for name in ("b", "a", "img_003_SRF_4"):
        image(tmp_path / "Set" / hr.format(name), 16)
        image(tmp_path / "Set" / lr.format(name), 4)
    benchmark = find_benchmark(tmp_path, "Set", scale=4)
    assert benchmark.name == "Set"
    assert benchmark.has_ground_truth
    expected = [(name, tmp_path / "Set" / hr.format(name), tmp_path / "Set" / lr.format(name)) for name in "ab"]
    assert [(entry.name, entry.hr, entry.lr) for entry in benchmark.images[:2]] == expected
    assert len(benchmark.images) == 3


def test_folder_of_lr_images_has_no_ground_truth(tmp_path):
    image(tmp_path / "photos" / "a.png", 5)
    benchmark = find_benchmark(tmp_path / "absent", str(tmp_path / "photos"), scale=4)
    assert not benchmark.has_ground_truth
    assert [(entry.name, entry.hr) for entry in benchmark.images] == [("a", None)]


def test_name_that_is_nearly_right_is_suggested(tmp_path):
    image(tmp_path / "Urban100" / "HR" / "a.png", 4)
    with pytest.raises(UserError, match=r"did you mean Urban100\?"):
        find_benchmark(tmp_path, "Urban10", scale=4)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"HR/a.png": 16}, "has HR but not the LR folder"),
        ({"HR/a.png": 16, "LR_bicubic/X4/bx4.png": 4}, "do not pair by name"),
        ({"HR/a.png": 16, "LR_bicubic/X4/ax4.png": 5}, "calls for 4x4 at scale 4"),
        ({"a_HR.png": 16, "a_LR.png": 4, "b_LR.png": 4}, "do not pair up by name"),
        ({"somewhere/else/a.png": 4}, "none of the known layouts"),
        ({"a.png": 4, "a.jpg": 4}, "both be written as one PNG"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, files, sentence):
    for name, side in files.items():
        image(tmp_path / "Set" / name, side)
    with pytest.raises(UserError, match=sentence):
        find_benchmark(tmp_path, "Set", scale=4)


def test_files_and_folders_to_upscale_become_benchmarks_without_ground_truth(tmp_path, monkeypatch):
    for name in ("holiday/b.jpg", "holiday/a_HR.png", "z.png", "other/a.JPG"):
        image(tmp_path / name, 5)
    (tmp_path / "holiday/notes.txt").touch()
    monkeypatch.chdir(tmp_path / "holiday")
    found = find_inputs([Path("../z.png"), Path("."), Path("../other/a.JPG")])
    assert [(benchmark.name, [entry.name for entry in benchmark.images]) for benchmark in found] == [
        ("holiday", ["a_HR", "b"]),
        ("input", ["a", "z"]),
    ]
    assert [entry.lr for entry in found[1].images] == [Path("../other/a.JPG"), Path("../z.png")]
    assert not any(benchmark.has_ground_truth for benchmark in found)


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (["absent.png"], "absent.png does not exist"),
        (["x" * 300], "does not exist"),
        (["notes.txt"], r"notes.txt is no image by its name; .*\.png"),
        (["empty"], "no image in .*empty"),
        (["a.png", "other/a.png"], "a.png and .*other/a.png would both be written as one PNG"),
        (["a.png", "a.png"], "would both be written as one PNG"),
    ],
)
def test_what_cannot_be_upscaled_is_told(tmp_path, paths, sentence):
    for name in ("a.png", "other/a.png"):
        image(tmp_path / name, 5)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=sentence):
        find_inputs([tmp_path / path for path in paths])
