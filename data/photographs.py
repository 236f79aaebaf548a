"""Photographs: images together with what their files carry beside 8-bit RGB, read and written again.

Carried are the orientation, alpha, 16 bits per channel, grey in one channel, and the colour profile.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sed_sr.data.files import atomic_writer
from sed_sr.data.images import Cancelled, as_rgb, image_size, read_unchanged, to_8_bits, write_image
from sed_sr.options.errors import UserError

PILLOW_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
WRITABLE_SUFFIXES = frozenset({".png", *PILLOW_FORMATS})
MAX_SIDE_PX = {"JPEG": 65_500, "WEBP": 16_383}  # of libjpeg and libwebp
QUALITY = 95  # of JPEG and WebP
ORIENTATION = 0x0112  # the number of the EXIF tag
ICC_COLOUR_SPACE = slice(16, 20)  # in the header of a profile (ICC.1:2022, 7.2)
# EXIF 2.32, 4.6.4: how to turn an image that is stored with an orientation into one that is upright.
TO_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


@dataclass(frozen=True)
class Photograph:
    """An upright image and what its file carries."""

    pixels: np.ndarray  # (H, W, 3) uint8 or uint16 RGB
    alpha: np.ndarray | None = None  # (H, W) of the type of `pixels`; 0 is transparent
    grey: bool = False  # the file has one channel of colour; `pixels` repeat it
    icc_profile: bytes | None = None
    notes: tuple[str, ...] = ()  # what the user should know about the reading


def read_photograph(path: Path) -> Photograph:
    """Read an image of 8 or 16 bits per channel with what its file carries.

    The pixels are those of `data.images.read_rgb`, but of the file's depth and turned upright. Where alpha is 0, the
    colours are those of the nearest pixel that is not transparent: what editors leave there, often black, would give
    the visible pixels beside it dark fringes. A profile for other colours than those of the result is dropped: one of
    CMYK or Lab, or of RGB beside a single channel of grey.

    Raises:
        UserError: as `read_rgb`.
    """
    stored = read_unchanged(path)
    notes = []
    try:
        # By a file object: Pillow would map a file that it opens by its path, and then not turn TIFF upright.
        with open(path, "rb") as file, Image.open(file) as header:
            grey = Image.getmodebase(header.mode) == "L"
            if header.format == "TIFF" and header.mode in ("LA", "RGBA") and stored.dtype == np.uint8:
                # OpenCV multiplies the colours by alpha, and drops the alpha of grey.
                stored = np.asarray(header.convert("RGBA"))[..., [2, 1, 0, 3]]
            alpha = _read_alpha(stored, header)
            icc_profile = header.info.get("icc_profile") or b""
            # OpenCV turns TIFF upright by itself.
            orientation = 1 if header.format == "TIFF" else header.getexif().get(ORIENTATION)
            # MPO is a JPEG photograph with a preview or a depth map, which are no frames.
            if getattr(header, "is_animated", False) and header.format != "MPO":
                notes.append(f"{path} has several frames; only the first one is upscaled")
    except Exception:  # as in `image_size`: Pillow's plugins raise all kinds of errors
        grey, alpha, icc_profile, orientation = stored.ndim == 2, None, b"", 1
        if stored.ndim == 3 and stored.shape[2] == 4:
            alpha = stored[..., 3]
        notes.append(f"{path}: the orientation and the colour profile cannot be read and are ignored")
    upright = TO_UPRIGHT.get(orientation, np.asarray)
    rgb = np.ascontiguousarray(upright(as_rgb(stored, path, keep_depth=True)))
    if alpha is not None:
        alpha = np.ascontiguousarray(upright(alpha))
        _fill_transparent(rgb, alpha)
    fits = icc_profile[ICC_COLOUR_SPACE] == (b"GRAY" if grey else b"RGB ")
    return Photograph(rgb, alpha, grey, icc_profile if fits else None, tuple(notes))


def _read_alpha(stored: np.ndarray, header: Image.Image) -> np.ndarray | None:
    """The alpha of an image that OpenCV read; None if the file has none, also where OpenCV adds an opaque one."""
    if not header.has_transparency_data:
        return None
    if stored.ndim == 3:
        return stored[..., 3] if stored.shape[2] == 4 else None
    # OpenCV does not apply the level that is transparent in a grey PNG.
    return np.where(stored == header.info["transparency"], 0, np.iinfo(stored.dtype).max).astype(stored.dtype)


def _fill_transparent(rgb: np.ndarray, alpha: np.ndarray) -> None:
    """Give each pixel with alpha 0 the colour of the nearest other pixel, in place."""
    transparent = alpha == 0
    if not transparent.any() or transparent.all():
        return
    # The label of a pixel is that of the nearest pixel that is not transparent; each of those has its own.
    _, labels = cv2.distanceTransformWithLabels(
        transparent.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.empty((labels.max() + 1, 3), rgb.dtype)
    colours[labels[~transparent]] = rgb[~transparent]
    rgb[transparent] = colours[labels[transparent]]


def write_photograph(path: Path, photograph: Photograph, *, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Write a photograph as PNG, JPEG or WebP, by the ending of `path`, with `atomic_writer`.

    PNG holds everything, and is encoded strip by strip. See `losses` for JPEG and WebP, whose encoders take memory for
    a second image.

    Args:
        cancelled: as of `write_image`; JPEG and WebP ask once, before they start.

    Raises:
        WriteError: the disk is full, or the file cannot be written for another reason.
        Cancelled: `cancelled` returned True; no file is left.
    """
    if path.suffix == ".png":
        write_image(
            path,
            luminance(photograph.pixels) if photograph.grey else photograph.pixels,
            alpha=photograph.alpha,
            icc_profile=photograph.icc_profile,
            cancelled=cancelled,
        )
        return
    if cancelled():
        raise Cancelled
    kind = PILLOW_FORMATS[path.suffix]
    image = over_white(photograph) if kind == "JPEG" else as_pillow(photograph)
    # Without chroma subsampling, which would halve the resolution of colours. WebP has no such setting.
    how = {"subsampling": 0} if kind == "JPEG" else {}
    with atomic_writer(path) as file:
        image.save(file, kind, quality=QUALITY, icc_profile=photograph.icc_profile, **how)


def losses(photograph: Photograph, suffix: str) -> Iterator[str]:
    """What a file with this ending cannot hold of a photograph, a sentence each."""
    if suffix in PILLOW_FORMATS and photograph.pixels.dtype == np.uint16:
        yield f"images of 16 bits per channel are rounded to 8, because {suffix} holds no more; --ext png keeps 16"
    if PILLOW_FORMATS.get(suffix) == "JPEG" and photograph.alpha is not None:
        yield f"transparent images are laid over white, because {suffix} holds no alpha; --ext png keeps it"


def check_side(path: Path, *, suffix: str, scale: int) -> None:
    """Check from the header of an image that the format of this ending can hold its SR.

    Raises:
        UserError: it is too large. An image whose size cannot be read raises nothing here.
    """
    limit_px = MAX_SIDE_PX.get(PILLOW_FORMATS.get(suffix, ""))
    if limit_px is None:
        return
    try:
        height, width = (scale * side_px for side_px in image_size(path))
    except UserError:
        return
    if max(height, width) > limit_px:
        raise UserError(
            f"{path} would become {width}x{height} px, and {suffix} holds at most {limit_px} px a side; give --ext png"
        )


def luminance(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB -> (H, W) of the same type: Y of ITU-R BT.601, rounded. Equal channels give their value."""
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def as_pillow(photograph: Photograph) -> Image.Image:
    """A photograph in 8 bits, of mode L, LA, RGB or RGBA, without its profile."""
    pixels = to_8_bits(photograph.pixels)
    image = Image.fromarray(luminance(pixels) if photograph.grey else pixels)
    if photograph.alpha is not None:
        image.putalpha(Image.fromarray(to_8_bits(photograph.alpha)))
    return image


def over_white(photograph: Photograph) -> Image.Image:
    """A photograph in 8 bits without alpha, of mode L or RGB: white shows through where it is transparent."""
    image = as_pillow(photograph)
    if photograph.alpha is None:
        return image
    white = Image.new(image.mode.removesuffix("A"), image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white
