"""Draw what a discriminator sees in an image: semantic features, attention maps, and what it takes for real.

In the cross-attention of SeD, queries come from the semantics, keys and values from the image features. The attention
map of a point shows which image features a fusion block uses there. Default points are those with the most distinct
semantics.

    python -m utils.visualization.attention_map --weights_d checkpoint/run/discriminator_latest.pth --image photo.png
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sed_sr.data.images import read_rgb, write_image
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.memory import unless_out_of_memory
from sed_sr.utils.visualization.discriminator_file import TrainedDiscriminator, load_discriminator
from sed_sr.utils.visualization.discriminator_views import Point, Views, discriminator_views, shown_part
from sed_sr.utils.visualization.figure import INFERNO, VIRIDIS, Panel, Scale, draw
from sed_sr.utils.visualization.pictures import attention_picture, mark_point, real_picture, semantics_picture
from sed_sr.utils.weights.pretrained import locate

DEFAULT_POINTS = 4
MAX_MISSING_PX = 7  # by which SR may be smaller than HR: HR is cropped to a multiple of the scale before it is shrunk
FILES = ("overview.png", "attention.png", "semantics.png", "real_fake.png")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m utils.visualization.attention_map",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--weights_d", "--weights-d", required=True, metavar="FILE",
                        help="discriminator_latest.pth or a training state of a run")  # fmt: skip
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="HR image")
    parser.add_argument("--sr", type=Path, metavar="FILE", help="SR image of it, for real/fake maps of both")
    parser.add_argument("--point", type=int, nargs=2, action="append", metavar=("X", "Y"),
                        help="pixel of the image, from the left and from the top; may be repeated "
                        f"(default: {DEFAULT_POINTS} points of distinct semantics)")  # fmt: skip
    parser.add_argument("--block", type=int, choices=(1, 2, 3), help="only this fusion block")
    parser.add_argument("--pretrained_root", type=Path, metavar="FOLDER",
                        help="folder of the pretrained weights (default: the run's)")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: results/<image>_attention")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    output = arguments.output or Path("results") / f"{arguments.image.stem}_attention"
    for source in filter(None, (arguments.image, arguments.sr)):
        if source.resolve() in [(output / name).resolve() for name in FILES]:
            raise UserError(f"{source} would be overwritten; give another --output than {output}")
    hr, sr = read_images(arguments.image, arguments.sr)
    about = check_points(arguments.point or (), hr, arguments.image)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = locate(arguments.weights_d, pretrained_root=arguments.pretrained_root or Path("pretrained"))
    trained = load_discriminator(weights, device=device, pretrained_root=arguments.pretrained_root)
    print(f"{arguments.weights_d}: {trained.about}")
    print(about)
    compute = partial(draw_figures, trained, hr, sr, points=arguments.point, block=arguments.block)
    figures = unless_out_of_memory(compute)
    if figures is None:
        raise UserError(f"out of memory on {device} for {arguments.image}; give a smaller image")
    for name, figure in figures.items():
        write_image(output / name, figure)
        print(output / name)
    return 0


def read_images(image: Path, sr: Path | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read HR, and SR if given, and crop HR to the size of SR.

    Raises UserError if an image cannot be read, or SR does not have the size of an SR image of HR.
    """
    hr_pixels = read_rgb(image)
    if sr is None:
        return hr_pixels, {}
    sr_pixels = read_rgb(sr)
    (height, width), (sr_height, sr_width) = hr_pixels.shape[:2], sr_pixels.shape[:2]
    if not (0 <= height - sr_height <= MAX_MISSING_PX and 0 <= width - sr_width <= MAX_MISSING_PX):
        raise UserError(
            f"{sr} has {sr_width}x{sr_height} pixels, but an SR image of {image} has {width}x{height} pixels"
        )
    return hr_pixels[:sr_height, :sr_width], {"SR": sr_pixels}


def check_points(points: Sequence[Sequence[int]], hr: np.ndarray, image: Path) -> str:
    """Check that the points lie in the part of the image that the discriminator accepts.

    Returns:
        A description of this part.

    Raises:
        UserError: a point lies outside, or the image is too small.
    """
    try:
        rows, columns = shown_part(*hr.shape[:2])
    except UserError as error:
        raise UserError(f"{image}: {error}") from None
    bounds = f"x from {columns.start} to {columns.stop - 1}, y from {rows.start} to {rows.stop - 1}"
    for x, y in points:
        if not (columns.start <= x < columns.stop and rows.start <= y < rows.stop):
            raise UserError(f"--point {x} {y} is outside of the part of {image} that is shown: {bounds}")
    return f"{image}: the part that is shown has {bounds}"


def draw_figures(
    trained: TrainedDiscriminator,
    hr: np.ndarray,
    sr: dict[str, np.ndarray],
    *,
    points: Sequence[Sequence[int]] | None,
    block: int | None,
) -> dict[str, np.ndarray]:
    """All figures by file name, (H, W, 3) uint8; prints why one is missing."""
    rows, columns = shown_part(*hr.shape[:2])
    views = discriminator_views(
        trained.discriminator,
        trained.extractor,
        hr=hr,
        sr=sr,
        points=None if points is None else [(x - columns.start, y - rows.start) for x, y in points],
        max_points=DEFAULT_POINTS,
    )
    images = {"HR": hr, **sr}
    real = [
        [Panel(name, images[name][views.part]), _real_panel(name, values, hr[views.part].shape[:2])]
        for name, values in {"HR": views.real_hr, **views.real_sr}.items()
    ]
    figures, top, attention = {}, [panel for row in real for panel in row], []
    if views.semantics is None:
        print("this discriminator has no semantics and no attention")
    else:
        figures["semantics.png"] = semantics_picture(views.semantics, hr[views.part].shape[:2])
        channels, grid_rows, grid_columns = views.semantics.shape[1:]
        top.insert(1, Panel(f"semantics, {grid_columns}x{grid_rows} of {channels}", figures["semantics.png"]))
        if views.attention:
            attention = [
                _attention_row(hr[views.part], views, number, block=block, corner=(columns.start, rows.start))
                for number in range(len(views.points))
            ]
            figures["attention.png"] = draw(attention)
        else:
            print("this discriminator concatenates the semantics and has no attention")
    return {**figures, "real_fake.png": draw(real), "overview.png": draw([top, *attention])}


def _real_panel(name: str, real: np.ndarray, size: tuple[int, int]) -> Panel:
    return Panel(
        f"{name}: {real.mean():.0%} real on average", real_picture(real, size), Scale(VIRIDIS, "0 fake", "real 1")
    )


def _attention_row(image: np.ndarray, views: Views, number: int, *, block: int | None, corner: Point) -> list[Panel]:
    """The image with a point, and the attention maps of the point in all blocks."""
    point = views.points[number]
    x, y = (start + at for start, at in zip(corner, point, strict=True))
    row = [Panel(f"point {x} {y}", mark_point(image, point))]
    for name, maps in views.attention.items():
        if block is None or name == f"fusion{block}":
            attention = maps[number]
            # Relative to uniform attention, which is the mean.
            low, high = (100 * (attention.size * float(value) - 1) for value in (attention.min(), attention.max()))
            title = f"attention of {name} ({attention.shape[1]}x{attention.shape[0]})"
            scale = Scale(INFERNO, f"mean {low:+.4g} %", f"{high:+.4g} %")
            row.append(Panel(title, attention_picture(image, attention, point), scale))
    return row


if __name__ == "__main__":
    run(main)
