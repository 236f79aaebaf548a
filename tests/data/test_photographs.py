"""Photographs are read and written with what their files carry; Pillow, OpenCV and SciPy are the references."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageCms, ImageOps
from scipy import ndimage

from sed_sr.data import png
from sed_sr.data.images import Cancelled, read_rgb
from sed_sr.data.photographs import (
    ORIENTATION,
    Photograph,
    as_pillow,
    check_side,
    losses,
    read_photograph,
    write_photograph,
)
from sed_sr.options.errors import UserError

PHOTO = skimage.data.coffee()[100:143, 100:151]
GREY = np.asarray(Image.fromarray(PHOTO).convert("L"))
ROWS, COLUMNS = np.mgrid[:43, :51]
ALPHA = np.clip(12 * np.hypot(ROWS - 20, COLUMNS - 30) - 60, 0, 255).astype(np.uint8)  # a hole with a soft edge
DEEP = PHOTO.astype(np.uint16) * 256 + ALPHA[..., None]  # the lower 8 bits matter
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[ORIENTATION] = orientation
    return made


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.avif"])
def test_photograph_is_turned_upright_as_by_pillow(tmp_path, name, orientation):
    lossless = {"lossless": True} if name == "a.webp" else {}
    Image.fromarray(PHOTO).save(tmp_path / name, exif=exif(orientation), **lossless)
    with Image.open(tmp_path / name) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    read = read_photograph(tmp_path / name).pixels
    assert np.abs(read.astype(int) - upright).max() <= (3 if name == "a.avif" else 0)


def test_orientation_behind_the_pixels_of_a_png_is_found(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    content, tag = (tmp_path / "a.png").read_bytes(), exif(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(tag)) + b"eXIf" + tag + struct.pack(">I", zlib.crc32(b"eXIf" + tag))
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png").pixels, np.rot90(PHOTO, -1))


def test_what_is_written_is_upright_and_has_no_orientation(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", exif=exif(6), quality=100)
    for name in ("b.png", "b.jpg", "b.webp"):
        write_photograph(tmp_path / name, read_photograph(tmp_path / "a.jpg"))
        with Image.open(tmp_path / name) as image:
            assert image.size == (43, 51)
            assert ORIENTATION not in image.getexif()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_alpha_is_read_and_colours_are_kept_wherever_they_are_visible(tmp_path, name, orientation):
    how = {"lossless": True, "exact": True} if name == "a.webp" else {}
    Image.fromarray(np.dstack((PHOTO, ALPHA))).save(tmp_path / name, exif=exif(orientation), **how)
    photograph = read_photograph(tmp_path / name)
    alpha, pixels = (np.rot90(image, -1) if orientation == 6 else image for image in (ALPHA, PHOTO))
    np.testing.assert_array_equal(photograph.alpha, alpha)
    np.testing.assert_array_equal(photograph.pixels[alpha > 0], pixels[alpha > 0])


def test_transparent_pixels_have_the_colour_of_the_nearest_visible_one(tmp_path):
    """As near as SciPy's exact distances, up to the few percent by which OpenCV's are approximate."""
    alpha = np.where(np.random.default_rng(0).random(GREY.shape) < 0.02, 255, 0).astype(np.uint8)
    places = np.dstack((ROWS, COLUMNS, np.full_like(ROWS, 99))).astype(np.uint8)
    places[alpha == 0] = 0
    Image.fromarray(np.dstack((places, alpha))).save(tmp_path / "a.png")
    filled = read_photograph(tmp_path / "a.png").pixels.astype(int)
    assert (filled[..., 2] == 99).all()
    assert (alpha[filled[..., 0], filled[..., 1]] == 255).all()
    distance = np.hypot(filled[..., 0] - ROWS, filled[..., 1] - COLUMNS)
    nearest = ndimage.distance_transform_edt(alpha == 0)
    assert (distance <= 1.05 * nearest).all()
    assert (distance == nearest).mean() > 0.9


@pytest.mark.parametrize("level", [0, 255])
def test_alpha_of_one_value_changes_no_colour(tmp_path, level):
    Image.fromarray(np.dstack((PHOTO, np.full_like(GREY, level)))).save(tmp_path / "a.png")
    photograph = read_photograph(tmp_path / "a.png")
    np.testing.assert_array_equal(photograph.pixels, PHOTO)
    assert (photograph.alpha == level).all()


def test_transparent_colour_of_palette_rgb_and_grey_files_is_alpha(tmp_path):
    level = int(GREY[0, 0])
    Image.fromarray(GREY).save(tmp_path / "grey.png", transparency=level)
    Image.fromarray(PHOTO).save(tmp_path / "rgb.png", transparency=tuple(PHOTO[0, 0].tolist()))
    palette = Image.fromarray(PHOTO).convert("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    palette.save(tmp_path / "palette.gif", transparency=palette.getpixel((0, 0)))
    Image.fromarray(GREY).convert("LA").save(tmp_path / "grey.tif")
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGBA"))[..., 3]
        np.testing.assert_array_equal(read_photograph(path).alpha, expected, err_msg=path.name)
    assert (read_photograph(tmp_path / "grey.png").alpha == 0).any()


def test_files_without_alpha_have_none_even_where_opencv_adds_one(tmp_path):
    Image.fromarray(PHOTO).convert("CMYK").save(tmp_path / "a.tif")
    assert cv2.imread(str(tmp_path / "a.tif"), cv2.IMREAD_UNCHANGED).shape[2] == 4
    assert read_photograph(tmp_path / "a.tif").alpha is None


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_read_in_full(tmp_path, name, channels):
    deep = {1: DEEP[..., 0], 3: DEEP, 4: np.dstack((DEEP, np.full_like(DEEP[..., 0], 60_000)))}[channels]
    cv2.imwrite(str(tmp_path / name), deep if channels == 1 else deep[..., [2, 1, 0, 3][:channels]])
    photograph = read_photograph(tmp_path / name)
    assert photograph.pixels.dtype == np.uint16
    np.testing.assert_array_equal(photograph.pixels, DEEP[..., :1].repeat(3, 2) if channels == 1 else DEEP)
    assert photograph.grey == (channels == 1)
    if channels == 4:
        np.testing.assert_array_equal(photograph.alpha, deep[..., 3])


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("grey", [False, True])
def test_png_is_read_back_as_it_was_written(tmp_path, deep, alpha, grey):
    """By OpenCV, which reads 16 bits, and the profile by Pillow; in several strips."""
    pixels = (DEEP if deep else PHOTO).repeat(400, axis=1)
    if grey:
        pixels = pixels[..., :1].repeat(3, axis=2)
    hole = (ALPHA.astype(np.uint16) * 250 if deep else ALPHA).repeat(400, axis=1) if alpha else None
    photograph = Photograph(pixels, hole, grey, PROFILE)
    write_photograph(tmp_path / "a.png", photograph)
    assert png.is_intact(tmp_path / "a.png")
    read = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    assert read.dtype == pixels.dtype
    expected = pixels[..., ::-1] if alpha or not grey else pixels[..., 0]
    np.testing.assert_array_equal(read[..., :3] if alpha else read, expected)
    if alpha:
        np.testing.assert_array_equal(read[..., 3], hole)
    header = (tmp_path / "a.png").read_bytes()[: png.HEADER.itemsize + 2]
    assert header[-2:] == bytes([16 if deep else 8, {(0, 0): 2, (0, 1): 6, (1, 0): 0, (1, 1): 4}[grey, alpha]])
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["icc_profile"] == PROFILE


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_file_is_written_with_one_channel(tmp_path, mode):
    Image.fromarray(PHOTO).convert(mode).save(tmp_path / "a.png")
    photograph = read_photograph(tmp_path / "a.png")
    assert photograph.grey
    np.testing.assert_array_equal(photograph.pixels, read_rgb(tmp_path / "a.png"))
    for name, written in (("b.png", "LA" if mode == "LA" else "L"), ("b.jpg", "L")):
        write_photograph(tmp_path / name, photograph)
        with Image.open(tmp_path / name) as image:
            assert image.mode == written


def test_grey_is_the_luminance_of_the_rgb_result(tmp_path):
    """As Pillow's conversion, up to its rounding."""
    write_photograph(tmp_path / "a.png", Photograph(PHOTO, grey=True))
    written = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    assert np.abs(written - np.asarray(Image.fromarray(PHOTO).convert("L"))).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_colour_profile_is_kept_bit_for_bit(tmp_path, name):
    profile = PROFILE + bytes(100_000)  # JPEG splits it
    Image.fromarray(PHOTO).save(tmp_path / name, icc_profile=profile)
    photograph = read_photograph(tmp_path / name)
    np.testing.assert_array_equal(photograph.pixels, read_rgb(tmp_path / name))
    for written in ("b.png", "b.jpg", "b.webp"):
        write_photograph(tmp_path / written, photograph)
        with Image.open(tmp_path / written) as image:
            assert image.info["icc_profile"] == profile
    write_photograph(tmp_path / "c.png", Photograph(PHOTO))
    with Image.open(tmp_path / "c.png") as image:
        assert "icc_profile" not in image.info


@pytest.mark.parametrize(
    ("name", "mode", "space", "kept"),
    [
        ("a.jpg", "RGB", b"RGB ", True),
        ("a.png", "P", b"RGB ", True),
        ("a.jpg", "L", b"GRAY", True),
        ("a.jpg", "L", b"RGB ", False),  # PNG forbids it
        ("a.jpg", "CMYK", b"CMYK", False),
        ("a.tif", "LAB", b"Lab ", False),
        ("a.webp", "RGB", b"junk", False),
    ],
)
def test_profile_is_kept_where_it_fits_the_colours_of_the_result(tmp_path, name, mode, space, kept):
    profile = PROFILE[:16] + space + PROFILE[20:]
    Image.new(mode, (51, 43)).save(tmp_path / name, icc_profile=profile)
    assert read_photograph(tmp_path / name).icc_profile == (profile if kept else None)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_first_frame_is_read_and_a_note_says_so(tmp_path, name):
    frames = [Image.fromarray(image).convert("P" if name == "a.gif" else "RGB") for image in (PHOTO, 255 - PHOTO)]
    how = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **how)
    photograph = read_photograph(tmp_path / name)
    np.testing.assert_array_equal(photograph.pixels, np.asarray(frames[0].convert("RGB")))
    (note,) = photograph.notes
    assert note == f"{tmp_path / name} has several frames; only the first one is upscaled"


def test_jpeg_with_a_preview_is_no_animation(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.fromarray(PHOTO[:9])])
    assert read_photograph(tmp_path / "a.jpg").notes == ()


def test_unreadable_metadata_is_a_note_and_the_pixels_are_read(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png", exif=b"Exif\0\0no exif")
    photograph = read_photograph(tmp_path / "a.png")
    np.testing.assert_array_equal(photograph.pixels, PHOTO)
    assert "cannot be read and are ignored" in photograph.notes[0]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("missing.png", lambda path: None),
        ("text.png", lambda path: path.write_text("hello")),
        ("float.tif", lambda path: Image.fromarray(GREY.astype(np.float32)).save(path)),
    ],
)
def test_unreadable_image_is_the_error_of_read_rgb(tmp_path, name, write):
    write(tmp_path / name)
    with pytest.raises(UserError) as error:
        read_rgb(tmp_path / name)
    with pytest.raises(UserError) as same:
        read_photograph(tmp_path / name)
    assert str(same.value) == str(error.value)


def test_jpeg_shows_white_behind_transparent_parts_and_webp_keeps_them(tmp_path):
    photograph = Photograph(PHOTO, ALPHA)
    for name in ("a.jpg", "a.webp"):
        write_photograph(tmp_path / name, photograph)
    opacity = ALPHA[..., None] / 255
    expected = PHOTO * opacity + 255 * (1 - opacity)
    written = np.asarray(Image.open(tmp_path / "a.jpg"))
    assert np.abs(written - expected).mean() < 2
    assert (written[ALPHA == 0] > 245).all()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.webp"))[..., 3], ALPHA)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_jpeg_and_webp_round_16_bits_to_8(tmp_path, name):
    write_photograph(tmp_path / name, Photograph(PHOTO.astype(np.uint16) * 257))
    assert np.abs(np.asarray(Image.open(tmp_path / name)).astype(int) - PHOTO).mean() < 3


def test_what_a_format_cannot_hold_is_said():
    deep, hole = Photograph(DEEP), Photograph(PHOTO, ALPHA)
    assert [list(losses(each, ".png")) for each in (deep, hole)] == [[], []]
    (rounded,), (covered,) = losses(deep, ".jpg"), losses(hole, ".jpeg")
    assert "rounded to 8" in rounded
    assert "over white" in covered
    assert (len(list(losses(deep, ".webp"))), list(losses(hole, ".webp"))) == (1, [])
    assert list(losses(Photograph(PHOTO), ".jpg")) == []


def test_size_that_a_format_cannot_hold_is_refused_from_the_header(tmp_path):
    """The limit is that of the encoder: one pixel less is written."""
    Image.new("L", (4096, 1)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png would become 16384x4 px, and \.webp holds at most 16383 px a side"):
        check_side(tmp_path / "a.png", suffix=".webp", scale=4)
    for suffix, scale in ((".png", 4), (".jpg", 4), (".webp", 3)):
        check_side(tmp_path / "a.png", suffix=suffix, scale=scale)
    check_side(tmp_path / "missing.png", suffix=".webp", scale=4)
    with pytest.raises(UserError, match="65500"):
        check_side(tmp_path / "a.png", suffix=".jpeg", scale=16)
    for name, side in (("a.webp", 16_383), ("a.jpg", 65_500)):
        write_photograph(tmp_path / name, Photograph(np.zeros((1, side, 3), np.uint8)))
        with pytest.raises(Exception, match=f"{side + 1}|cannot write|{side}|broken"):
            write_photograph(tmp_path / f"larger_{name}", Photograph(np.zeros((1, side + 1, 3), np.uint8)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_cancelled_writing_leaves_no_file(tmp_path, name):
    with pytest.raises(Cancelled):
        write_photograph(tmp_path / name, Photograph(PHOTO), cancelled=lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_pillow_image_has_8_bits_and_the_channels_of_the_file():
    for photograph, mode in (
        (Photograph(DEEP), "RGB"),
        (Photograph(PHOTO, ALPHA), "RGBA"),
        (Photograph(PHOTO, grey=True), "L"),
        (Photograph(PHOTO, ALPHA, grey=True), "LA"),
    ):
        assert as_pillow(photograph).mode == mode
