"""Cut DF2K into sub-images: `python extract_subimages.py --input DF2K/train --output DF2K/train_sub`.

One folder at a time, HR and LR folders alike; or an HR and an LR folder together, with --input_lr and --output_lr; or
HR images alone at several sizes, with --scales 1 0.75 0.5 1/3. With --pack, training reads the sub-images many times
faster.
"""

import argparse
from pathlib import Path

from sed_sr.data.prepare import grid, jobs
from sed_sr.data.prepare.subimages import extract
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description="Cut the images of a folder into overlapping sub-images.")
    parser.add_argument("--input", type=Path, required=True, help="folder of images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the sub-images, 0001_s001.png ...")
    parser.add_argument("--input_lr", type=Path, help="folder of LR images, which are cut together with the HR images")
    parser.add_argument("--output_lr", type=Path, help="folder for the LR sub-images, named as the HR ones")
    parser.add_argument("--crop_size", type=int, default=480, help="side of a sub-image, in pixels of --input (480)")
    parser.add_argument("--step", type=int, default=240, help="from one sub-image to the next (240)")
    parser.add_argument("--thresh_size", type=int, default=0, help="how many pixels may stay uncovered at the end (0)")
    parser.add_argument("--scale", type=int, default=4, help="HR images are cut at multiples of this (4)")
    parser.add_argument(
        "--scales",
        nargs="+",
        default=["1"],
        metavar="SIZE",
        help="sizes at which to cut HR images, as fractions, to train without LR images: 1 0.75 0.5 1/3 (1)",
    )
    parser.add_argument("--pack", action="store_true", help="write packs, which training reads without decoding")
    jobs.add_arguments(parser)
    args = parser.parse_args()

    jobs.check_arguments(args)
    if args.scale < 1:
        raise UserError(f"--scale is {args.scale}; at least 1 is expected")
    if (args.input_lr is None) != (args.output_lr is None):
        raise UserError("--input_lr and --output_lr go together; one of them is missing")
    sizes = grid.read_sizes(args.scales)
    if args.input_lr and sizes != (grid.FULL_SIZE,):
        raise UserError("--scales is for HR images alone, and --input_lr gives LR images; give only one of them")
    if args.input_lr:
        cut_jobs = grid.paired_jobs(
            args.input, args.output, lr=args.input_lr, lr_output=args.output_lr, scale=args.scale
        )
    else:
        cut_jobs = grid.single_jobs(args.input, args.output, scale=args.scale, sizes=sizes)
    return extract(
        cut_jobs,
        grid.Grid(args.crop_size, args.step, args.thresh_size),
        compression_level=args.compression_level,
        workers=args.n_thread,
        overwrite=args.overwrite,
        resume=args.resume,
        packed=args.pack,
    )


if __name__ == "__main__":
    run(main)
