"""Show what a discriminator sees in an image: the semantics it is given, where it attends, what it takes for real.

The semantics of a place ask, the image features of all places answer: the attention of a point tells where in the image
a fusion block of SeD looks, to judge that point. Points that are not given are those whose semantics differ most.

    python -m utils.attention_map --weights_d checkpoint/run/states/state_000300000.pth --image photo.png
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sed_sr.data.images import read_rgb, write_image
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.memory import unless_out_of_memory
from sed_sr.utils.visualization.discriminator_file import TrainedDiscriminator, load_discriminator
from sed_sr.utils.visualization.discriminator_views import Look, Point, attending_blocks, look, telling_points
from sed_sr.utils.visualization.figure import INFERNO, VIRIDIS, Panel, Scale, draw
from sed_sr.utils.visualization.pictures import (
    attention_picture,
    marked,
    middle,
    real_picture,
    semantics_picture,
    to_batch,
)

TELLING_POINTS = 4
LEFT_AWAY_PX = 3  # of HR at most, which SR may lack where LR was made of whole blocks of it
FILES = ("overview.png", "attention.png", "semantics.png", "real_fake.png")
BELIEF = Scale(VIRIDIS, "0 fake", "real 1")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m utils.attention_map",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--weights_d", "--weights-d", type=Path, required=True, metavar="STATE",
                        help="training state, checkpoint/<run>/states/state_*.pth")  # fmt: skip
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="HR image")
    parser.add_argument("--sr", type=Path, metavar="FILE", help="SR image of it, to compare what is taken for real")
    parser.add_argument("--point", type=int, nargs=2, action="append", metavar=("X", "Y"),
                        help="pixel of the image, from the left and from the top; any number of times "
                        f"(default: {TELLING_POINTS} whose semantics differ most)")  # fmt: skip
    parser.add_argument("--block", type=int, choices=(1, 2, 3), help="this fusion block alone")
    parser.add_argument("--pretrained_root", type=Path, metavar="FOLDER",
                        help="of the pretrained weights (default: the run's)")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: results/<image>_attention")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    output = arguments.output or Path("results") / f"{arguments.image.stem}_attention"
    refuse_loss(output, arguments)
    scene = open_scene(arguments.image, arguments.sr, arguments.point)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judge = load_discriminator(arguments.weights_d, device=device, pretrained_root=arguments.pretrained_root)
    print(f"{arguments.weights_d}: {judge.about}")
    print(f"{arguments.image}: {scene.about}")
    made = unless_out_of_memory(partial(pictures, judge, scene, arguments.block, device))
    if made is None:
        raise UserError(f"{device} ran out of memory on {arguments.image}; cut a smaller image out of it")
    for name, picture in made.items():
        write_image(output / name, picture)
        print(output / name)
    return 0


def refuse_loss(output: Path, arguments: argparse.Namespace) -> None:
    """Raise UserError where a picture would take the place of an image that was given."""
    for given in filter(None, (arguments.image, arguments.sr)):
        if given.resolve() in [(output / name).resolve() for name in FILES]:
            raise UserError(f"{given} would be written over; give another --output than {output}")


@dataclass(frozen=True)
class Scene:
    """What is shown to a discriminator."""

    hr: np.ndarray  # (H, W, 3) uint8, of sides that it takes
    sr: np.ndarray | None  # of the same size
    corner: Point  # of `hr` in the image
    points: list[Point] | None  # in `hr`; None: none were given
    about: str


def open_scene(image: Path, sr: Path | None, points: Sequence[Sequence[int]] | None) -> Scene:
    """Read the images and cut them to what a discriminator takes.

    Raises UserError where an image cannot be read or is too small, SR is no SR of it, or a point lies outside.
    """
    hr_pixels = read_rgb(image)
    height, width = hr_pixels.shape[:2]
    sr_pixels = None if sr is None else read_rgb(sr)
    if sr_pixels is not None:
        lacking = [whole - side for whole, side in zip(hr_pixels.shape[:2], sr_pixels.shape[:2], strict=True)]
        if not all(0 <= each <= LEFT_AWAY_PX for each in lacking):
            raise UserError(
                f"{sr} has {sr_pixels.shape[1]}x{sr_pixels.shape[0]} pixels, but an SR image of {image} has "
                f"{width}x{height}"
            )
        height, width = sr_pixels.shape[:2]
    try:
        rows, columns = middle(height, width)
    except UserError as error:
        raise UserError(f"{image}: {error}") from None
    for x, y in points or ():
        if not (columns.start <= x < columns.stop and rows.start <= y < rows.stop):
            raise UserError(
                f"--point {x} {y} is outside of what is shown of {image}: x from {columns.start} to "
                f"{columns.stop - 1}, y from {rows.start} to {rows.stop - 1}"
            )
    shown = (columns.stop - columns.start, rows.stop - rows.start)
    about = "{}x{} pixels".format(*shown)
    if shown != hr_pixels.shape[1::-1]:
        about = (
            f"the middle {about} of its {hr_pixels.shape[1]}x{hr_pixels.shape[0]} (a discriminator takes multiples of "
            "16, and 2^20 pixels are shown at most)"
        )
    return Scene(
        hr=hr_pixels[rows, columns],
        sr=None if sr_pixels is None else sr_pixels[rows, columns],
        corner=(columns.start, rows.start),
        points=None if points is None else [(x - columns.start, y - rows.start) for x, y in points],
        about=about,
    )


def pictures(
    judge: TrainedDiscriminator, scene: Scene, block: int | None, device: torch.device
) -> dict[str, np.ndarray]:
    """Everything that can be seen, by the name of its file, (H, W, 3) uint8; says what cannot."""
    size, image = scene.hr.shape[:2], to_batch(scene.hr, device)
    semantic = None if judge.extractor is None else judge.extractor(image)
    points = scene.points
    if points is None:
        points = [] if semantic is None else telling_points(semantic, size, TELLING_POINTS)
    at_hr = look(judge.discriminator, image, semantic, points)
    belief = [[Panel("HR", scene.hr), _belief("HR", at_hr, size)]]
    if scene.sr is not None:
        at_sr = look(judge.discriminator, to_batch(scene.sr, device), semantic)
        belief.append([Panel("SR", scene.sr), _belief("SR", at_sr, size)])
    made, top, attention = {}, [panel for row in belief for panel in row], []
    if semantic is None:
        print("the discriminator is a plain one: it is given no semantics, and attends to nothing")
    else:
        made["semantics.png"] = semantics_picture(semantic, size)
        channels, rows, columns = semantic.shape[1:]
        top.insert(1, Panel(f"semantics, {columns}x{rows} of {channels}", made["semantics.png"]))
        if attending_blocks(judge.discriminator):
            attention = _attention_rows(scene, at_hr, points, block)
            made["attention.png"] = draw(attention)
        else:
            print("the discriminator concatenates the semantics: there is no attention to see")
    return {**made, "real_fake.png": draw(belief), "overview.png": draw([top, *attention])}


def _belief(name: str, seen: Look, size: tuple[int, int]) -> Panel:
    return Panel(f"{name}: {seen.real.mean():.0%} real on average", real_picture(seen.real, size), BELIEF)


def _attention_rows(scene: Scene, seen: Look, points: Sequence[Point], block: int | None) -> list[list[Panel]]:
    """For each point the image, and where the blocks look."""
    names = [name for name in seen.attention if block is None or name == f"fusion{block}"]
    rows = []
    for number, point in enumerate(points):
        x, y = (start + at for start, at in zip(scene.corner, point, strict=True))
        row = [Panel(f"point {x} {y}", marked(scene.hr, point))]
        for name in names:
            attention = seen.attention[name][number]
            # By how much it differs from the mean, which every position would get if all got the same.
            low, high = (100 * (attention.numel() * value.item() - 1) for value in attention.aminmax())
            title = f"{name} looks at ({attention.shape[1]}x{attention.shape[0]})"
            scale = Scale(INFERNO, f"mean {low:+.4g} %", f"{high:+.4g} %")
            row.append(Panel(title, attention_picture(scene.hr, attention, point), scale))
        rows.append(row)
    return rows


if __name__ == "__main__":
    run(main)
