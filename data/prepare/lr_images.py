"""Make LR images from HR images: `python -m data.prepare.lr_images --input DF2K/train --output DF2K/train_x4`.

They are shrunk by `data.imresize`, as the LR images of DIV2K were.
"""

import argparse
import functools
from pathlib import Path

from sed_sr.data import images, png
from sed_sr.data.imresize import imresize
from sed_sr.data.prepare import jobs
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError


def shrink_file(source: Path, *, output: Path, scale: int, compression_level: int, resume: bool) -> int:
    """Write <output>/0001x4.png from <source folder>/0001.png, `scale` times smaller; return the number of files.

    The image is first cut at the right and the bottom to a multiple of the scale.
    """
    target = _target(source, output, scale)
    if resume and target.exists():
        return 0
    image = images.read_unchanged(source)
    height, width = (side // scale * scale for side in image.shape[:2])
    if not height or not width:
        raise UserError(f"{source} is {image.shape[1]}x{image.shape[0]}, too small to be shrunk {scale} times")
    shrunk = imresize(image[:height, :width], scale=1 / scale)
    images.write_unchanged(target, shrunk, compression_level=compression_level, durable=False)
    return 1


def remove_damaged_file(source: Path, *, output: Path, scale: int) -> int:
    """Remove the output of `shrink_file` if it is damaged; return the number of files removed."""
    return jobs.remove_damaged([_target(source, output, scale)], is_intact=png.is_intact)


def _target(source: Path, output: Path, scale: int) -> Path:
    return output / f"{source.stem}x{scale}.png"


def main() -> int:
    """Shrink every image of a folder; return the exit code, 1 when some images failed."""
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare.lr_images", description="Make LR images from HR images."
    )
    parser.add_argument("--input", type=Path, required=True, help="folder of HR images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the LR images, 0001x4.png from 0001.png")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4, 8), default=4, help="how many times smaller (default 4)")
    jobs.add_arguments(parser)
    args = parser.parse_args()
    jobs.check_arguments(args)

    sources = images.list_images(args.input)
    jobs.check_unique_names({source: f"{source.stem}x{args.scale}.png" for source in sources})
    jobs.prepare_outputs(
        [args.output],
        inputs=[args.input],
        pattern=rf".+x{args.scale}\.png",
        overwrite=args.overwrite,
        resume=args.resume,
    )
    targets = {"output": args.output, "scale": args.scale}
    return jobs.run(
        functools.partial(shrink_file, **targets, compression_level=args.compression_level, resume=args.resume),
        sources,
        workers=args.n_thread,
        made=f"LR images in {args.output}",
        outputs=[args.output],
        remove_damaged_of=functools.partial(remove_damaged_file, **targets),
    )


if __name__ == "__main__":
    run(main)
