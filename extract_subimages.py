"""Cut DF2K into sub-images: `python extract_subimages.py --input DF2K/train --output DF2K/train_sub`.

One folder at a time, HR and LR folders alike; or an HR and an LR folder together, with --input_lr and --output_lr; or
HR images alone at several sizes, with --scales 1 0.75 0.5 1/3. With --pack, training reads the sub-images many times as
fast.
"""

import argparse
from pathlib import Path

from sed_sr.data.prepare import image_jobs, subimages
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description="Cut the images of a folder into overlapping sub-images.")
    parser.add_argument("--input", type=Path, required=True, help="folder of images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the sub-images, 0001_s001.png ...")
    parser.add_argument("--input_lr", type=Path, help="folder of the LR images, to be cut together with the HR images")
    parser.add_argument("--output_lr", type=Path, help="folder for the LR sub-images, named as the HR sub-images are")
    parser.add_argument("--crop_size", type=int, default=480, help="side of a sub-image, in pixels of --input (480)")
    parser.add_argument("--step", type=int, default=240, help="from one sub-image to the next (240)")
    parser.add_argument("--thresh_size", type=int, default=0, help="how many pixels may stay uncovered at the end (0)")
    parser.add_argument("--scale", type=int, default=4, help="HR images are cut at multiples of this (4)")
    parser.add_argument(
        "--scales",
        nargs="+",
        default=["1"],
        metavar="SIZE",
        help="sizes to cut HR images at, as parts of their own, to train without LR images: 1 0.75 0.5 1/3 (1)",
    )
    parser.add_argument("--pack", action="store_true", help="write packs, from which nothing is decoded while training")
    image_jobs.add_arguments(parser)
    args = parser.parse_args()

    image_jobs.check_arguments(args)
    if args.scale < 1:
        raise UserError(f"--scale is {args.scale}; at least 1 is expected")
    if (args.input_lr is None) != (args.output_lr is None):
        raise UserError("--input_lr and --output_lr go together; one of them is missing")
    sizes = subimages.read_sizes(args.scales)
    if args.input_lr and sizes != (subimages.FULL_SIZE,):
        raise UserError("--scales is for HR images alone, and --input_lr gives LR images; leave one of them out")
    if args.input_lr:
        jobs = subimages.paired_jobs(
            args.input, args.output, lr=args.input_lr, lr_output=args.output_lr, scale=args.scale
        )
    else:
        jobs = subimages.single_jobs(args.input, args.output, scale=args.scale, sizes=sizes)
    return subimages.extract(
        jobs,
        subimages.Grid(args.crop_size, args.step, args.thresh_size),
        compression_level=args.compression_level,
        workers=args.n_thread,
        overwrite=args.overwrite,
        resume=args.resume,
        packed=args.pack,
    )


if __name__ == "__main__":
    run(main)
