"""test.py on all kinds of image files: each is upscaled correctly, or reported while the others are upscaled."""

import csv
import json
import runpy
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageCms

from sed_sr.data import png
from sed_sr.data.images import read_rgb
from sed_sr.data.imresize import imresize
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR

ROOT = Path(__file__).parents[1]
PHOTO = skimage.data.coffee()[100:143, 100:151]  # 51x43: no side is a multiple of a window, a tile or a JPEG block
LARGE = skimage.data.coffee()[:70, :75]
LOSSY = 4  # levels, on average over a photograph, by which a format or a kind of colour may be off


def save(**how):
    """Saves the photograph through Pillow."""

    def write(path: Path, *, mode: str = "RGB", pixels: np.ndarray = PHOTO, **options) -> None:
        Image.fromarray(pixels).convert(mode).save(path, **options)

    return lambda path: write(path, **how)


def save_interlaced(path: Path) -> None:
    """PNG by Adam7 (ISO/IEC 15948, 8.2), which neither Pillow nor OpenCV writes."""
    height, width = PHOTO.shape[:2]
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [row for y, x, down, right in passes for row in PHOTO[y::down, x::right]]
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    path.write_bytes(png.SIGNATURE + b"".join(packed))


def save_16_bits(path: Path) -> None:
    cv2.imwrite(str(path), PHOTO[:, :, ::-1].astype(np.uint16) * 257)


def save_truncated(path: Path) -> None:
    Image.fromarray(PHOTO).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return exif


GREY = np.asarray(Image.fromarray(PHOTO).convert("L").convert("RGB"))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# File name: how it is made, and the RGB pixels that it shows.
KINDS = {
    "png.png": (save(), PHOTO),
    "png, larger than a tile.png": (save(pixels=LARGE), LARGE),
    "png, interlaced.png": (save_interlaced, PHOTO),
    "png, resolution.png": (save(dpi=(72, 72)), PHOTO),
    "png, 16 bits.png": (save_16_bits, PHOTO),
    "png, grey.png": (save(mode="L"), GREY),
    "png, grey and alpha.png": (save(mode="LA"), GREY),
    "png, alpha.png": (save(mode="RGBA"), PHOTO),
    "png, palette.png": (save(mode="P"), np.asarray(Image.fromarray(PHOTO).convert("P").convert("RGB"))),
    "png, 1 bit.png": (save(mode="1"), np.asarray(Image.fromarray(PHOTO).convert("1").convert("RGB"))),
    "png, 1 wide.png": (save(pixels=PHOTO[:, :1]), PHOTO[:, :1]),
    "png, 1 high.png": (save(pixels=PHOTO[:1]), PHOTO[:1]),
    "png, 1 pixel.png": (save(pixels=PHOTO[:1, :1]), PHOTO[:1, :1]),
    "jpeg.jpg": (save(quality=98), PHOTO),
    "jpeg, another name.JPEG": (save(quality=98, format="JPEG"), PHOTO),
    "jpeg, called png.png": (save(quality=98, format="JPEG"), PHOTO),
    "jpeg, progressive.jpg": (save(quality=98, progressive=True), PHOTO),
    "jpeg, grey.jpg": (save(mode="L", quality=98), GREY),
    "jpeg, cmyk.jpg": (save(mode="CMYK", quality=98), PHOTO),
    "jpeg, profile.jpg": (save(quality=98, icc_profile=PROFILE), PHOTO),
    "jpeg, turned.jpg": (save(quality=98, exif=turned()), PHOTO),
    "bmp.bmp": (save(), PHOTO),
    "gif.gif": (save(), PHOTO),
    "jp2.jp2": (save(), PHOTO),
    "tiff.tif": (save(), PHOTO),
    "tiff, compressed.tiff": (save(compression="tiff_lzw"), PHOTO),
    "tiff, cmyk.tif": (save(mode="CMYK"), PHOTO),
    "tiff, 16 bits.tif": (save_16_bits, PHOTO),
    "webp.webp": (save(quality=98), PHOTO),
}
DAMAGED = {
    "truncated.png": save_truncated,
    "text.png": lambda path: path.write_text("hello"),
    "floating point.tif": lambda path: Image.fromarray(GREY[..., 0].astype(np.float32)).save(path),
    "phone.heic": lambda path: path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
}


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """The working folder, with photos/ of every kind and weights of two small networks."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(RRDBNet(features=8, blocks=1, growth=4).state_dict(), tmp_path / "rrdb.pth")
    torch.save(SwinIR(embed_dim=12, depths=(2,), heads=(2,), window=8).state_dict(), tmp_path / "swinir.pth")
    (tmp_path / "photos").mkdir()
    for name, (write, _) in KINDS.items():
        write(tmp_path / "photos" / name)
    return tmp_path


@pytest.fixture
def run_test(monkeypatch, capsys):
    """Runs test.py in this process; returns the exit code and the output."""

    def run(words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["test.py", *words.split(), "--output_path", "out"])
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(str(ROOT / "test.py"), run_name="__main__")
        said = capsys.readouterr()
        assert not said.err
        return ending.value.code, said.out

    return run


@pytest.mark.parametrize(
    "how",
    ["--input photos", "--benchmarks photos --tile_px 64 --self_ensemble --precision bf16 --batch_size 4"],
)
def test_every_kind_of_image_file_is_upscaled_as_it_is_displayed(photographs, run_test, how):
    code, said = run_test(f"--weights bicubic rrdb.pth swinir.pth {how}")
    assert code == 0, said
    assert f"{3 * len(KINDS)} images upscaled" in said
    for name, (_, shown) in KINDS.items():
        files = [Path("out") / label / f"photos/{Path(name).stem}.png" for label in ("bicubic", "rrdb", "swinir")]
        bicubic, *others = map(read_rgb, files)
        if how.startswith("--input") and name == "jpeg, turned.jpg":
            shown = np.rot90(shown, -1)
        expected = imresize(shown, scale=4)
        assert {sr.shape for sr in (bicubic, *others)} == {expected.shape}, name
        levels = np.abs(bicubic.astype(float) - expected)
        assert levels.mean() < LOSSY, name
        if name.startswith("png"):
            assert not levels.any(), name


def test_damaged_images_are_reported_and_the_others_are_upscaled(photographs, run_test):
    for name, write in DAMAGED.items():
        write(photographs / "photos" / name)
    code, said = run_test("--weights bicubic --input photos")
    assert code == 1
    failures = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert len(failures) == len(DAMAGED)
    assert all(any(f"photos/{name}" in line for line in failures) for name in DAMAGED)
    assert f"{len(KINDS)} images upscaled, {len(DAMAGED)} failures; see" in said
    assert len(list((photographs / "out/bicubic/photos").iterdir())) == len(KINDS)


def test_no_reference_metric_needs_no_ground_truth_and_missing_scores_are_reported(photographs, run_test):
    """Images that are too small for the metric are reported; the others have scores."""
    code, said = run_test("--weights bicubic --input photos --metrics piqe")
    rows = csv.DictReader((photographs / "out/results.csv").read_text().splitlines())
    scored = {row["image"] for row in rows if row["piqe"]}
    small = {Path(name).stem for name, (_, shown) in KINDS.items() if min(shown.shape[:2]) == 1}
    assert code == 1
    assert scored == {Path(name).stem for name in KINDS} - small
    assert all(f"{name}.png has no piqe" in said for name in small)
    assert (photographs / "out/report.html").is_file()


def test_what_photographs_carry_goes_through_the_command(photographs, command):
    """Sub-folders, formats, orientation, alpha, 16 bits, grey, profile and the first frame."""
    root = photographs / "holiday"
    (root / "beach").mkdir(parents=True)
    opaque, deep = np.full(PHOTO.shape[:2], 255, np.uint8), PHOTO.astype(np.uint16) * 257
    Image.fromarray(PHOTO).save(root / "plain.png")
    Image.fromarray(np.rot90(PHOTO)).save(root / "turned.png", exif=turned(), icc_profile=PROFILE)
    Image.fromarray(np.rot90(PHOTO)).save(root / "turned.jpg", exif=turned(), icc_profile=PROFILE, quality=98)
    Image.fromarray(np.dstack((PHOTO, opaque))).save(root / "beach/opaque.png")
    Image.fromarray(np.dstack((PHOTO, opaque))).save(root / "beach/opaque.webp", lossless=True)
    cv2.imwrite(str(root / "beach/deep.tif"), deep[:, :, ::-1])
    Image.fromarray(PHOTO).convert("L").save(root / "grey.png")
    Image.fromarray(GREY).save(root / "grey in three channels.png")
    frames = [Image.fromarray(image).convert("P") for image in (PHOTO, 255 - PHOTO)]
    frames[0].save(root / "clip.gif", save_all=True, append_images=frames[1:])
    words = "test.py --weights rrdb.pth --input holiday --ext same --suffix _x4 --output_path out --batch_size 2"
    done = command(*words.split(), cwd=photographs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("clip.gif has several frames; only the first one is upscaled") == 1
    out = photographs / "out/rrdb/holiday"

    def sr(name: str) -> np.ndarray:
        image = cv2.imread(str(out / name), cv2.IMREAD_UNCHANGED)
        return image if image.ndim == 2 else image[:, :, [2, 1, 0, 3][: image.shape[2]]]

    plain = sr("plain_x4.png")
    assert plain.shape == (172, 204, 3)
    np.testing.assert_array_equal(sr("turned_x4.png"), plain)
    np.testing.assert_array_equal(sr("beach/opaque_x4.png"), np.dstack((plain, np.full(plain.shape[:2], 255))))
    assert np.abs(sr("beach/deep_x4.png") / 257 - plain).max() <= 0.5 + 1 / 257
    grey, luminance = sr("grey_x4.png"), np.asarray(Image.fromarray(sr("grey in three channels_x4.png")).convert("L"))
    assert np.abs(grey.astype(int) - luminance).max() <= 1
    assert sr("clip_x4.png").shape == plain.shape
    with Image.open(out / "turned_x4.jpg") as jpeg, Image.open(out / "turned_x4.png") as turned_png:
        assert jpeg.info["icc_profile"] == turned_png.info["icc_profile"] == PROFILE
        assert (jpeg.format, jpeg.size) == ("JPEG", (204, 172))
        assert np.abs(np.asarray(jpeg).astype(int) - plain).mean() < LOSSY
    with Image.open(out / "beach/opaque_x4.webp") as webp:
        assert (webp.format, webp.size) == ("WEBP", (204, 172))
    images = json.loads((photographs / "out/results.json").read_text())["weights"][0]["benchmarks"]["holiday"]["images"]
    assert images.keys() == {path.relative_to(root).as_posix() for path in root.rglob("*.*")}
    assert "beach/opaque_x4.webp" in (photographs / "out/report.html").read_text()


def test_sr_that_a_format_cannot_hold_is_refused_before_anything_is_written(tmp_path, command):
    Image.new("RGB", (4096, 1)).save(tmp_path / "wide.png")
    done = command("test.py", "--weights", "bicubic", "--input", "wide.png", "--ext", "webp", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "wide.png would become 16384x4 px" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["wide.png"]
