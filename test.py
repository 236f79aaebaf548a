"""Score generators on benchmarks, side by side, or upscale images.

The exit code is 1 if an image could not be upscaled or scored. All other images are processed nevertheless.
"""

import argparse
import os
from functools import partial
from pathlib import Path

from sed_sr.options.arguments import option_parser, options_from
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override

# Flags that override the option of the same name in `test`.
FLAGS = ("weights", "benchmarks", "metrics", "precision", "tile_px", "batch_size", "self_ensemble")
# Used without --opt. The architecture is then read from the weights, so that `generator` is a placeholder, and nothing
# is trained, so that the patch only has to be a multiple of every scale.
DEFAULT_OPTIONS = {
    "name": "test",
    "generator": {"type": "rrdb"},
    "discriminator": None,
    "losses": {"gan": None},
    "dataset": {"hr_patch_px": 240},
}


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__, folders=("data_test_root",), opt_required=False)
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="[LABEL=]FILE",
        help="generator weights in any released format, also hf://user/repository/file, or `bicubic`; several are "
        "compared (test.weights)",
    )
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--benchmarks", nargs="+", metavar="NAME", help="names or folders (test.benchmarks)")
    images.add_argument("--input", nargs="+", type=Path, metavar="PATH", help="photographs or folders to upscale")
    parser.add_argument(
        "--ext",
        choices=("png", "jpg", "webp", "same"),
        help="format of the SR images of --input (png); same: that of each input, PNG where it is none of these",
    )
    parser.add_argument("--suffix", metavar="TEXT", help="end of the names of the SR images of --input, such as _x4")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="psnr, ssim, lpips, lpips-vgg, a model such as timm/tf_efficientnet_lite0.in1k for the distance in its "
        "features, or any metric of pyiqa, such as dists, niqe, musiq (test.metrics)",
    )
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="arithmetic (test.precision)")
    parser.add_argument(
        "--tile_px", type=int, metavar="N", help="side of LR tiles, a multiple of 8, at least 64 (test.tile_px)"
    )
    parser.add_argument(
        "--batch_size", type=int, metavar="N", help="images of the same size per batch (test.batch_size)"
    )
    parser.add_argument(
        "--self_ensemble",
        action="store_true",
        default=None,
        help="average over 8 flips and rotations (test.self_ensemble)",
    )
    parser.add_argument(
        "--weights_d",
        metavar="FILE",
        help="discriminator_latest.pth or a training state, whose discriminator the report visualizes: semantics, "
        "attention, real or fake",
    )
    parser.add_argument("--output_path", type=Path, metavar="FOLDER", help="output folder (results/<name>)")
    return parser.parse_args()


def flag_override(arguments: argparse.Namespace, name: str) -> Override:
    value = getattr(arguments, name)
    if isinstance(value, list):
        return Override(f"test.{name}", tuple(value), f"--{name} {' '.join(value)}")
    return Override(f"test.{name}", value, f"--{name}" if value is True else f"--{name} {value}")


def main() -> int:
    arguments = parse_arguments()
    for flag in ("ext", "suffix"):
        if getattr(arguments, flag) is not None and arguments.input is None:
            raise UserError(f"--{flag} is for the images of --input, which is not given")
    overrides = [flag_override(arguments, name) for name in FLAGS if getattr(arguments, name) is not None]
    read_options = partial(options_from, arguments, *overrides, default=DEFAULT_OPTIONS)
    if "RANK" not in os.environ:
        read_options()  # a single process reports mistakes in the options before the slow imports
    # Imports torch, which takes seconds: only after the arguments are parsed.
    from sed_sr.data.benchmarks import find_inputs
    from sed_sr.utils.test_run import run_test

    inputs = None
    if arguments.input is not None:
        inputs = partial(find_inputs, arguments.input, ext=arguments.ext or "png", suffix=arguments.suffix or "")
    return run_test(
        read_options,
        has_recipe=arguments.opt is not None,
        find_inputs=inputs,
        discriminator_state=arguments.weights_d,
        output=arguments.output_path,
    )


if __name__ == "__main__":
    run(main)
