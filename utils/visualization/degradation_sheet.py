"""A sheet of the degradation: `python -m utils.visualization.degradation_sheet --input photo.png --output sheet.png`.

It shows what each operation makes of the most detailed square of a photograph, in several draws, and blur kernels that
are drawn. The recipe is train_rrdb_P+SeD_real.yml where --opt names no other. --set changes an option, so that its
effect can be seen.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sed_sr.data.build import build_degradation, build_sharpening
from sed_sr.data.degradation.draws import Stage, draw_kernel
from sed_sr.data.degradation.kernels import stack_kernels
from sed_sr.data.degradation.pipeline import Degradation
from sed_sr.data.images import read_rgb, write_image
from sed_sr.data.prepare.degrade import degradation_options, degradation_parser
from sed_sr.data.tensors import to_array, to_float, to_tensor, to_uint8
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError

MAX_SAMPLES = 50
DETAIL_PX = 96  # side of the part of HR that the rows show
CELL_PX = 192  # side at which it is shown: HR pixels twice as large, LR pixels eight times
KERNEL_CELL_PX = 105  # 5 for each pixel of a 21x21 kernel
OVERVIEW_PX = 316  # the height of two rows of kernels
GAP_PX, MARGIN_PX = 10, 28
BACKGROUND, TEXT, FAINT_TEXT, FRAME = "#ffffff", "#1c1c1c", "#7a7a7a", "#e8372c"


def contact_sheet(
    hr: np.ndarray,
    degradation: Degradation,
    *,
    sharpening: Callable[[Tensor], Tensor] | None,
    seed: int,
    samples: int,
) -> np.ndarray:
    """Degrade an image several times and show the result of every operation.

    Args:
        hr: (P, P, 3) uint8, P at least DETAIL_PX and a multiple of the degradation's scale. The part with the most
            contrast is shown.
        sharpening: applied before the degradation, (B, 3, P, P) float in [0, 1]; None: none.
        seed: row k, counted from 1, is drawn from (seed, k), so that further samples do not change the first ones.
        samples: number of rows.

    Returns:
        (H, W, 3) uint8.
    """
    # Aligned to the LR grid, so that only whole LR pixels are shown.
    top, left = (corner // degradation.scale * degradation.scale for corner in most_detailed_square(hr, DETAIL_PX))
    detail = (left, top, left + DETAIL_PX, top + DETAIL_PX)
    batch = to_float(to_tensor(hr))[None]
    rows = []
    for row in range(1, samples + 1):
        traced = _trace(batch, degradation, sharpening, rng=np.random.default_rng([seed, row]))
        rows.append(_beside([_detail(title, image, detail, hr_px=len(hr)) for title, image in traced]))
    width_px = rows[0].width - OVERVIEW_PX - GAP_PX
    rng = np.random.default_rng(seed)
    stages = {"first": degradation.first, "second": degradation.second}
    kernels = _below([_kernels(name, stage, rng, width_px=width_px) for name, stage in stages.items()])
    heading = (
        f"Draws of the degradation, one in each row: the framed part, {DETAIL_PX}x{DETAIL_PX} pixels of HR, enlarged"
    )
    sheet = _below(
        [_beside([_overview(hr, detail), kernels]), _text_line(heading, size_px=18, width_px=width_px), *rows]
    )
    framed = Image.new("RGB", (sheet.width + 2 * MARGIN_PX, sheet.height + 2 * MARGIN_PX), BACKGROUND)
    framed.paste(sheet, (MARGIN_PX, MARGIN_PX))
    return np.array(framed)


def most_detailed_square(image: np.ndarray, side_px: int) -> tuple[int, int]:
    """(H, W, 3) -> (top, left) of the square with the most contrast between neighbouring pixels.

    side_px: at least 2, at most H and W.
    """
    grey = image.mean(axis=2)
    contrast = np.abs(np.diff(grey, axis=0))[:, 1:] + np.abs(np.diff(grey, axis=1))[1:]
    sums = np.pad(contrast, ((1, 0), (1, 0))).cumsum(0).cumsum(1)  # integral image
    reach = side_px - 1  # number of differences along a side
    squares = sums[reach:, reach:] - sums[:-reach, reach:] - sums[reach:, :-reach] + sums[:-reach, :-reach]
    top, left = np.unravel_index(squares.argmax(), squares.shape)
    return int(top), int(left)


def _trace(
    hr: Tensor, degradation: Degradation, sharpening: Callable[[Tensor], Tensor] | None, *, rng: np.random.Generator
) -> list[tuple[str, np.ndarray]]:
    """(1, 3, P, P) -> title and image, (H, W, 3) uint8, of HR and of the result of every operation."""
    traced = [("HR", hr)]
    if sharpening is not None:
        hr = sharpening(hr)
        traced.append(("sharpened HR", hr))
    degradation(hr, rng=rng, trace=lambda title, images: traced.append((title, images)))
    return [(title, to_array(to_uint8(images[0]))) for title, images in traced]


def _detail(title: str, image: np.ndarray, box: tuple[int, ...], *, hr_px: int) -> Image.Image:
    """The part of an image that corresponds to a box of HR; a title like "noise (Gaussian)" is split on two lines."""
    height, width = image.shape[:2]
    left, top, right, bottom = (side * width / hr_px for side in box)
    picture = Image.fromarray(image).resize(
        (CELL_PX, CELL_PX), Image.Resampling.NEAREST, box=(left, top, right, bottom)
    )
    title, _, details = title.partition(" (")
    return _captioned(picture, title, details.removesuffix(")") or f"{height}x{width}")


def _overview(hr: np.ndarray, detail: tuple[int, ...]) -> Image.Image:
    """HR with a frame around the part that the rows show."""
    picture = Image.fromarray(hr).resize((OVERVIEW_PX, OVERVIEW_PX), Image.Resampling.LANCZOS)
    frame = [side * OVERVIEW_PX / len(hr) for side in detail]
    ImageDraw.Draw(picture).rectangle(frame, outline=FRAME, width=3)
    return _captioned(picture, "HR", f"{len(hr)}x{len(hr)}")


def _kernels(name: str, stage: Stage, rng: np.random.Generator, *, width_px: int) -> Image.Image:
    """Kernels that a stage draws, as many as fit, with a heading; zero is grey, negative weights are darker."""
    drawn = [draw_kernel(stage, rng) for _ in range((width_px + GAP_PX) // (KERNEL_CELL_PX + GAP_PX))]
    weights = [kernel.weights() for kernel in drawn]
    cells = []
    for kernel, own, padded in zip(drawn, weights, stack_kernels(weights), strict=True):
        # The square root makes small weights visible: a hundredth of the largest becomes a tenth.
        shade = np.sign(padded) * np.sqrt(np.abs(padded) / np.abs(padded).max())
        picture = Image.fromarray((127.5 + 127.5 * shade).round().astype(np.uint8)).convert("RGB")
        picture = picture.resize((KERNEL_CELL_PX, KERNEL_CELL_PX), Image.Resampling.NEAREST)
        cells.append(_captioned(picture, kernel.kind.replace("_", " "), f"{len(own)}x{len(own)}", size_px=13))
    heading = _text_line(f"Blur kernels that the {name} stage draws; grey is zero", size_px=18, width_px=width_px)
    return _below([heading, _beside(cells)])


def _captioned(picture: Image.Image, title: str, details: str, *, size_px: int = 16) -> Image.Image:
    return _below(
        [
            picture,
            _text_line(title, size_px=size_px, width_px=picture.width),
            _text_line(details, size_px=size_px - 2, width_px=picture.width, color=FAINT_TEXT),
        ],
        gap_px=0,
    )


def _text_line(text: str, *, size_px: int, width_px: int, color: str = TEXT) -> Image.Image:
    line = Image.new("RGB", (width_px, size_px * 3 // 2), BACKGROUND)
    ImageDraw.Draw(line).text((0, line.height / 2), text, color, ImageFont.load_default(size_px), anchor="lm")
    return line


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    return _compose(images, gap_px=GAP_PX, across=True)


def _below(images: Sequence[Image.Image], gap_px: int = GAP_PX) -> Image.Image:
    return _compose(images, gap_px=gap_px, across=False)


def _compose(images: Sequence[Image.Image], *, gap_px: int, across: bool) -> Image.Image:
    """Images in a row or a column, with gaps, aligned at the upper left."""
    along, other = (0, 1) if across else (1, 0)
    length = sum(image.size[along] for image in images) + gap_px * (len(images) - 1)
    breadth = max(image.size[other] for image in images)
    canvas = Image.new("RGB", (length, breadth) if across else (breadth, length), BACKGROUND)
    place = 0
    for image in images:
        canvas.paste(image, (place, 0) if across else (0, place))
        place += image.size[along] + gap_px
    return canvas


def crop_hr(path: Path, *, hr_px: int, scale: int) -> np.ndarray:
    """The most detailed square of hr_px of a photograph, or of its shorter side if that is less; (P, P, 3) uint8.

    `scale` divides P.

    Raises:
        UserError: the file cannot be read, or the photograph or hr_px is too small for the sheet.
    """
    photo = read_rgb(path)
    side_px = min(hr_px, *photo.shape[:2]) // scale * scale
    if side_px < DETAIL_PX:
        height, width = photo.shape[:2]
        raise UserError(
            f"{path} is {height}x{width} and degradation.hr_px is {hr_px}; both must be at least {DETAIL_PX}, the side "
            "of the part that the sheet shows"
        )
    top, left = most_detailed_square(photo, side_px)
    return photo[top : top + side_px, left : left + side_px]


def main() -> int:
    parser = degradation_parser(__doc__, command="utils.visualization.degradation_sheet")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="photograph")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the sheet, a PNG file")
    parser.add_argument("--samples", type=int, default=4, help="number of draws on the sheet (default 4)")
    args = parser.parse_args()
    if not 1 <= args.samples <= MAX_SAMPLES:
        raise UserError(f"--samples is {args.samples}; 1 to {MAX_SAMPLES} is expected")
    options, scale = degradation_options(args)
    if args.output.suffix != ".png":
        raise UserError(f"--output is {args.output}; a file name that ends in .png is expected")
    if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        raise UserError(f"--output {args.output} is the photograph itself; give another --output")
    hr = crop_hr(args.input, hr_px=options.hr_px, scale=scale)
    degradation, sharpening = build_degradation(options, scale=scale), build_sharpening(options)
    sheet = contact_sheet(hr, degradation, sharpening=sharpening, seed=args.seed, samples=args.samples)
    write_image(args.output, sheet)
    print(f"{args.samples} draw{'s' * (args.samples > 1)} of {args.input}: {args.output}")
    return 0


if __name__ == "__main__":
    run(main)
