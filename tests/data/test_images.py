import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from sed_sr.data import images
from sed_sr.data.files import WriteError
from sed_sr.options.errors import UserError

ROOT = Path(__file__).parents[2]
LARGE_IMAGE = """
import sys
from pathlib import Path
import numpy as np
from sed_sr.data.images import write_image

def peak_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1000 for line in lines if line.startswith("VmHWM"))

image = np.full((6000, 6000, 3), 77, np.uint8)
write_image(Path(sys.argv[1]).with_name("small.png"), image[:600])
before = peak_mb()
write_image(Path(sys.argv[1]), image)
print(image.nbytes // 10**6, peak_mb() - before)
"""


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_rgb_survives_writing_and_pillow_agrees_on_the_channels(tmp_path, rgb):
    images.write_image(tmp_path / "a.png", rgb)
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.png"), rgb)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), rgb)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1), (700, 3001)])
@pytest.mark.parametrize("level", [0, 3, 9])
def test_a_png_written_strip_by_strip_is_the_image_to_other_readers(tmp_path, size, level):
    """The largest one takes two strips."""
    pixels = np.random.default_rng(0).integers(0, 8, (*size, 3), np.uint8) * 36
    images.write_image(tmp_path / "a.png", pixels, compression_level=level)
    with Image.open(tmp_path / "a.png") as image:
        image.verify()  # the checksums of all chunks
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[:, :, ::-1], pixels)


def test_file_of_a_photograph_is_no_larger_than_that_of_opencv(tmp_path):
    photo = skimage.data.astronaut()
    images.write_image(tmp_path / "a.png", photo)
    images.write_unchanged(tmp_path / "b.png", photo[:, :, ::-1])
    assert (tmp_path / "a.png").stat().st_size < 1.03 * (tmp_path / "b.png").stat().st_size


def test_writing_takes_no_second_copy_of_an_image(tmp_path):
    """In a process of its own, by the peak of its resident memory."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE_IMAGE, tmp_path / "a.png"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    image_mb, writing_mb = map(int, done.stdout.split())
    assert image_mb == 108
    assert writing_mb < 30


def test_cancelled_write_leaves_the_old_file(tmp_path, rgb):
    images.write_image(tmp_path / "a.png", rgb)
    with pytest.raises(images.Cancelled):
        images.write_image(tmp_path / "a.png", 255 - rgb, cancelled=lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.png"), rgb)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGB", "RGBA"])
def test_every_kind_of_png_reads_as_pillow_converts_it(tmp_path, rgb, mode):
    image = Image.fromarray(rgb).convert(mode)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_and_colour_kept(tmp_path, rgb):
    alpha = np.zeros((20, 30, 1), np.uint8)
    Image.fromarray(np.concatenate([rgb, alpha], axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.png"), rgb)


def test_every_16_bit_value_becomes_the_nearest_8_bit_value(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.png"), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (20, 30, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_unchanged_images_keep_depth_and_channels(tmp_path, shape, dtype):
    stored = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    images.write_unchanged(tmp_path / "a.png", stored)
    read = images.read_unchanged(tmp_path / "a.png")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, stored)


def test_orientation_is_ignored_by_pixels_and_size_alike(tmp_path, rgb):
    image = Image.fromarray(rgb)
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "a.jpg", exif=exif)
    assert images.read_rgb(tmp_path / "a.jpg").shape[:2] == images.image_size(tmp_path / "a.jpg") == (20, 30)


@pytest.mark.parametrize("suffix", sorted(images.IMAGE_SUFFIXES - {".pbm", ".pgm"}))
def test_header_size_equals_decoded_size_in_every_format(tmp_path, rgb, suffix):
    Image.fromarray(rgb).save(tmp_path / f"a{suffix}")
    assert images.image_size(tmp_path / f"a{suffix}") == images.read_rgb(tmp_path / f"a{suffix}").shape[:2] == (20, 30)


def test_size_needs_no_pixel(tmp_path, rgb):
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[:24])
    assert images.image_size(tmp_path / "a.png") == (20, 30)


@pytest.mark.parametrize("read", [images.read_rgb, images.read_unchanged, images.image_size])
def test_missing_and_damaged_files_are_named(tmp_path, read):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello " * 20)
    for name in ("missing.png", "empty.png", "text.png"):
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)


def test_a_truncated_image_is_an_error_not_half_a_picture(tmp_path, rgb):
    for suffix in (".png", ".jpg", ".bmp", ".webp"):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(rgb).save(path)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(UserError, match=path.name):
            images.read_rgb(path)


def test_floating_point_images_are_neither_read_nor_written(tmp_path):
    Image.fromarray(np.ones((5, 5), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="float32"):
        images.read_rgb(tmp_path / "a.tif")
    with pytest.raises(UserError, match="float32"):
        images.write_unchanged(tmp_path / "a.png", images.read_unchanged(tmp_path / "a.tif"))


def test_full_disk_is_a_write_error_and_leaves_the_old_file(tmp_path, rgb, monkeypatch):
    def no_space(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    images.write_image(tmp_path / "a.png", rgb)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(WriteError, match=r"a\.png: No space left"):
        images.write_image(tmp_path / "a.png", 255 - rgb)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.png"), rgb)


def test_written_files_have_the_permissions_of_any_new_file(tmp_path, rgb):
    images.write_image(tmp_path / "a.png", rgb)
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_listing_is_sorted_and_skips_other_files(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", ".c.png.7.tmp", "notes.txt", "c.png.tmp"):
        (tmp_path / name).touch()
    assert [path.name for path in images.list_images(tmp_path)] == ["a.JPG", "b.png"]


def test_missing_and_empty_folders_are_named(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=str(folder)):
            images.list_images(folder)


@pytest.mark.parametrize(
    ("stem", "stripped"),
    [("0001x4", "0001"), ("ax4b", "ax4b"), ("x4", "x4"), ("ax4x2", "ax4"), ("640x480", "640x480"), ("0001", "0001")],
)
def test_the_scale_is_removed_at_the_end_only(stem, stripped):
    assert images.strip_scale_suffix(stem) == stripped
