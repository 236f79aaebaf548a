"""Benchmarks are found in the published layouts, and their images are paired by name."""

import importlib
import shlex
from pathlib import Path

import pytest
from PIL import Image

from sed_sr.data.benchmarks import find_benchmark, find_inputs
from sed_sr.options.errors import UserError


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
    "realsr": ("Canon/Test/4/{}_HR.png", "Canon/Test/4/{}_LR4.png"),
    "realsr, one camera": ("Test/4/{}_HR.png", "Test/4/{}_LR4.png"),
    "realsr, crops": ("test_HR/{}_HR.png", "test_LR/{}_LR4.png"),
    "drealsr": ("Test_x4/test_HR/{}_x4.png", "Test_x4/test_LR/{}_x1.png"),
    "drealsr, the other way round": ("Test_x4/test_HR/{}_x1.png", "Test_x4/test_LR/{}_x4.png"),
    "drealsr, crops": ("test_HR/{}_x1.png", "test_LR/{}_x1.png"),
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


def test_cameras_of_realsr_form_one_benchmark_and_each_alone_too(tmp_path):
    """Whatever scales lie beside each other, and whichever of its folders is named."""
    for camera, number in (("Nikon", "001"), ("Canon", "001"), ("Canon", "002")):
        folder = tmp_path / "RealSR(V3)" / camera / "Test"
        for scale in (2, 4):
            image(folder / str(scale) / f"{camera}_{number}_HR.png", 16)
            image(folder / str(scale) / f"{camera}_{number}_LR{scale}.png", 16 // scale)
        image(folder / "4" / f"{camera}_{number}_LR2.png", 8)
        image(folder.with_name("Train") / "4" / f"{camera}_009_HR.png", 16)
    both = find_benchmark(tmp_path, "RealSR(V3)", scale=4)
    assert both.name == "RealSR(V3)"
    assert [(entry.name, entry.lr.name, entry.hr.name) for entry in both.images] == [
        (name, f"{name}_LR4.png", f"{name}_HR.png") for name in ("Canon_001", "Canon_002", "Nikon_001")
    ]
    canon = find_benchmark(tmp_path, "RealSR(V3)/Canon", scale=4)
    assert canon == find_benchmark(tmp_path, "RealSR(V3)/Canon/Test/4", scale=4)
    assert (canon.name, canon.images) == ("Canon", both.images[:2])
    assert [entry.lr.name for entry in find_benchmark(tmp_path, "RealSR(V3)/Nikon/Test/2", scale=2).images] == [
        "Nikon_001_LR2.png"
    ]


@pytest.mark.parametrize("hr_px", [16, 17, 18, 19])
def test_lr_may_be_rounded_down_or_up_where_hr_is_no_multiple_of_the_scale(tmp_path, hr_px):
    for name, lr_px in (("down", 4), ("up", -(-hr_px // 4))):
        image(tmp_path / f"RealSR/Canon/Test/4/{name}_HR.png", hr_px)
        image(tmp_path / f"RealSR/Canon/Test/4/{name}_LR4.png", lr_px)
    assert len(find_benchmark(tmp_path, "RealSR", scale=4).images) == 2


def test_folder_of_lr_images_has_no_ground_truth(tmp_path):
    image(tmp_path / "photos" / "a.png", 5)
    benchmark = find_benchmark(tmp_path / "absent", str(tmp_path / "photos"), scale=4)
    assert not benchmark.has_ground_truth
    assert [(entry.name, entry.hr) for entry in benchmark.images] == [("a", None)]


def test_similar_name_is_suggested(tmp_path):
    image(tmp_path / "Urban100" / "HR" / "a.png", 4)
    with pytest.raises(UserError, match=r"did you mean Urban100\?"):
        find_benchmark(tmp_path, "Urban10", scale=4)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"HR/a.png": 16}, "has HR but not the LR folder"),
        ({"HR/a.png": 16, "LR_bicubic/X4/bx4.png": 4}, "do not pair by name"),
        (
            {"HR/a.png": 16, "LR_bicubic/X4/a.png": 5},
            r"LR_bicubic/X4/a\.png is 5x5, and .*/HR/a\.png .* 4x4 is",
        ),
        ({"a_HR.png": 16, "a_LR.png": 4, "b_LR.png": 4}, "do not pair up by name.* such as b; the names of an HR"),
        (
            {"a_HR.png": 16, "A_LR.png": 4},
            r"such as A, a; the names differ only in upper .* \(a_HR\.png and A_LR\.png\); ",
        ),
        (
            {"test_HR/a_hr.png": 16, "test_LR/a_lr.png": 4},
            "the names differ only in endings .* expected to differ only",
        ),
        (
            {"HR/A.png": 16, "LR_bicubic/X4/ax4.png": 4},
            "the names differ only in upper and lower case .* is expected to",
        ),
        ({"Canon/Test/4/a_HR.png": 16, "Canon/Test/4/a_LR2.png": 8}, "the 1 HR and 0 LR images .* do not pair up"),
        (
            {"Canon/Test/4/a_HR.png": 16, "Canon/Test/4/a_LR4.png": 16},
            r"a_LR4\.png is as large as .*/Test/4/a_HR\.png .* take version 3",
        ),
        ({"Canon/Test/4/a_HR.png": 16, "Nikon/Test/4/a_HR.png": 16}, "both be written as one PNG"),
        ({"Test_x4/test_HR/a_x4.png": 16}, "has Test_x4/test_HR but not the LR folder Test_x4/test_LR$"),
        ({"test_HR/a_x4.png": 16, "test_LR/a_x1.png": 4, "test_LR/a_x2.png": 4}, "both be written as one PNG"),
        (
            {"test_HR/a_x4.png": 16, "test_LR/b_x1.png": 4},
            "test_HR and .*test_LR do not pair up by name.* such as a, b; the names of an HR",
        ),
        ({"somewhere/else/a.png": 4}, "none of the known layouts"),
        ({"a.png": 4, "a.jpg": 4}, "both be written as one PNG"),
    ],
)
def test_images_that_do_not_pair_raise_an_error(tmp_path, files, sentence):
    for name, side in files.items():
        image(tmp_path / "Set" / name, side)
    with pytest.raises(UserError, match=sentence):
        find_benchmark(tmp_path, "Set", scale=4)


@pytest.mark.parametrize(
    "name",
    ["HR/a.png", "GTmod12/a.png", "DIV2K_valid_HR/a.png", "original/a.png", "image_SRF_4/a_SRF_4_HR.png", "a_HR.png"],
)
def test_command_suggested_for_hr_without_lr_makes_the_lr_images(tmp_path, monkeypatch, name):
    image(tmp_path / "My Set" / name, 24)
    with pytest.raises(UserError, match=r"benchmark .*My Set has .*; to make LR images of the HR images: ") as error:
        find_benchmark(tmp_path, "My Set", scale=4)
    python, run, module, *words = shlex.split(str(error.value).partition("HR images: ")[2])
    assert (python, run, words[-2:]) == ("python", "-m", ["--scale", "4"])
    assert module == ("data.prepare." + ("lr_images" if name.startswith("GTmod12") else "benchmark"))
    monkeypatch.setattr("sed_sr.data.prepare.jobs.run", lambda work, jobs, **_: max(work(job) for job in jobs) - 1)
    monkeypatch.setattr("sys.argv", [module, *words])
    importlib.import_module(module).main()
    assert [(entry.name, entry.lr.parent.name) for entry in find_benchmark(tmp_path, "My Set", scale=4).images] == [
        ("a", "LRbicx4")
    ]


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


def test_photographs_of_other_formats_are_not_skipped(tmp_path):
    """Whether OpenCV can read them shows when they are read."""
    for name in ("a.png", "c.JPG"):
        image(tmp_path / "photos" / name, 5)
    for name in ("b.heic", "d.GIF", "notes.txt", "._b.heic"):
        (tmp_path / "photos" / name).touch()
    (found,) = find_inputs([tmp_path / "photos"])
    assert [entry.lr.name for entry in found.images] == ["a.png", "b.heic", "c.JPG", "d.GIF"]
    benchmark = find_benchmark(tmp_path, "photos", scale=4)
    assert [(entry.name, entry.lr) for entry in benchmark.images] == [(entry.name, entry.lr) for entry in found.images]
    assert find_inputs([tmp_path / "photos/b.heic"])[0].images == found.images[1:2]


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (["absent.png"], "absent.png does not exist"),
        (["x" * 300], "does not exist"),
        (["notes.txt"], r"notes.txt is not an image by its name; .*\.png"),
        (["empty"], "no image in .*empty"),
        (["a.png", "other/a.png"], "a.png and .*other/a.png would both be written as a.png"),
        (["a.png", "a.png"], "would both be written as a.png"),
        (["twins"], "twins/sub/a.jpg and .*twins/sub/a.png would both be written as sub/a.png"),
    ],
)
def test_paths_that_cannot_be_upscaled_raise_an_error(tmp_path, paths, sentence):
    for name in ("a.png", "other/a.png", "twins/sub/a.jpg", "twins/sub/a.png"):
        image(tmp_path / name, 5)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=sentence):
        find_inputs([tmp_path / path for path in paths])


def test_sub_folders_are_searched_and_kept_but_not_hidden_ones(tmp_path):
    for name in ("b.png", "a/c.jpg", "a/d/b.png", ".cache/e.png", "a/.f.png"):
        image(tmp_path / "photos" / name, 5)
    (tmp_path / "photos/notes").mkdir()
    (tmp_path / "photos/notes/a.txt").touch()
    (found,) = find_inputs([tmp_path / "photos"])
    assert [(entry.name, entry.sr_name) for entry in found.images] == [
        ("a/c", "a/c.png"),
        ("a/d/b", "a/d/b.png"),
        ("b", "b.png"),
    ]
    assert [entry.lr.relative_to(tmp_path / "photos").as_posix() for entry in found.images] == [
        "a/c.jpg",
        "a/d/b.png",
        "b.png",
    ]


@pytest.mark.parametrize(
    ("ext", "suffix", "written"),
    [
        ("png", "_x4", ["a.b_x4.png", "c_x4.png", "d_x4.png", "e_x4.png"]),
        ("jpg", "", ["a.b.jpg", "c.jpg", "d.jpg", "e.jpg"]),
        ("same", "-sr", ["a.b-sr.png", "c-sr.jpg", "d-sr.png", "e-sr.webp"]),
    ],
)
def test_names_of_sr_have_the_suffix_and_the_ending_that_were_asked_for(tmp_path, ext, suffix, written):
    for name in ("a.b.png", "c.JPG", "d.tif", "e.webp"):
        image(tmp_path / "photos" / name, 5)
    (found,) = find_inputs([tmp_path / "photos"], ext=ext, suffix=suffix)
    assert [entry.sr_name for entry in found.images] == written


def test_same_ending_keeps_images_apart_whose_names_differ_in_it_only(tmp_path):
    for name in ("a.jpg", "a.png"):
        image(tmp_path / "photos" / name, 5)
    (found,) = find_inputs([tmp_path / "photos"], ext="same")
    assert [(entry.name, entry.sr_name) for entry in found.images] == [("a.jpg", "a.jpg"), ("a.png", "a.png")]
    image(tmp_path / "photos/a.tif", 5)
    with pytest.raises(UserError, match=r"a\.png and .*a\.tif would both be written as a\.png"):
        find_inputs([tmp_path / "photos"], ext="same")


def test_suffix_cannot_lead_out_of_the_folder(tmp_path):
    image(tmp_path / "a.png", 5)
    with pytest.raises(UserError, match=r"--suffix is /\.\./\.\./b"):
        find_inputs([tmp_path / "a.png"], suffix="/../../b")
