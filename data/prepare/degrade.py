"""Make a benchmark for real-world SR: `python -m data.prepare.degrade --input Set5/GTmod12 --output Set5_real`.

The LR images are made by the degradation that a recipe trains with, drawn once from a seed: train_rrdb_P+SeD_real.yml
where --opt names no other. --set changes an option.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sed_sr.data.files import WriteError, flush_file_systems, nearest_existing
from sed_sr.data.images import IMAGE_SUFFIXES, list_images, read_rgb, write_image
from sed_sr.data.prepare.jobs import check_unique_names
from sed_sr.options.arguments import option_parser, options_from
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.options.schema import DegradationOptions

RECIPE = Path(__file__).parents[2] / "options" / "train_rrdb_P+SeD_real.yml"
HR, LR = "test_HR", "test_LR"
MIN_PX = 64


def degrade_folder(
    source: Path,
    output: Path,
    degrade: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    *,
    scale: int,
    seed: int,
) -> int:
    """Write `output`/test_HR and `output`/test_LR: 8-bit RGB PNG files of the same names, HR cut to whole LR pixels.

    Image k of the folder, in the order of names, is degraded by draws from (seed, k).

    Args:
        degrade: makes LR, (H, W, 3) uint8, from HR, (scale * H, scale * W, 3) uint8.

    Returns:
        The exit code: 1 when some images are unreadable or too small (they are named on stderr), else 0.

    Raises:
        UserError: the folder has no image, two would be written under one name, or the output is not an empty folder.
    """
    paths = list_images(source)
    check_unique_names({path: f"{path.stem}.png" for path in paths})
    if output.suffix.lower() in IMAGE_SUFFIXES or output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"--output {output} is a file or not empty; a new folder is expected: give another --output")
    failed = 0
    for number, path in enumerate(tqdm(paths, disable=None)):  # None: shown on a terminal only
        try:
            hr = _cut(read_rgb(path), path, scale)
            lr = degrade(hr, np.random.default_rng([seed, number]))
            write_image(output / LR / f"{path.stem}.png", lr, durable=False)
            # Last: an HR image without its LR would not be a pair.
            write_image(output / HR / f"{path.stem}.png", hr, durable=False)
        except WriteError:
            raise
        except UserError as error:
            print(f"failed: {error}", file=sys.stderr)
            failed += 1
    flush_file_systems([nearest_existing(output)])
    print(f"{len(paths) - failed} images degraded, {failed} failed: {output}")
    return int(failed > 0)


def _cut(image: np.ndarray, path: Path, scale: int) -> np.ndarray:
    height, width = (side // scale * scale for side in image.shape[:2])
    if min(height, width) < MIN_PX:
        raise UserError(f"{path} is {image.shape[1]}x{image.shape[0]}; at least {MIN_PX}x{MIN_PX} is expected")
    return image[:height, :width]


def degradation_parser(description: str | None, *, command: str) -> argparse.ArgumentParser:
    """A parser of a command that degrades images as a recipe does, with the options and --seed."""
    parser = option_parser(description, folders=(), opt_required=False)
    parser.prog = f"python -m {command}"
    parser.set_defaults(opt=RECIPE)
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws (default 0)")
    return parser


def degradation_options(args: argparse.Namespace) -> tuple[DegradationOptions, int]:
    """The degradation and the scale of a recipe. Raises UserError when the seed or the recipe cannot be used."""
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; 0 or more is expected")
    options = options_from(args)
    if options.degradation is None:
        raise UserError(f"{args.opt} has no degradation: it trains on existing LR images")
    return options.degradation, options.scale


def main() -> int:
    parser = degradation_parser(__doc__, command="data.prepare.degrade")
    parser.add_argument("--input", type=Path, required=True, metavar="FOLDER", help="HR images")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder for the benchmark")
    args = parser.parse_args()
    options, scale = degradation_options(args)
    # Imported here, because PyTorch takes two seconds, which --help and a mistake in the arguments do not need.
    from sed_sr.data.build import build_degradation
    from sed_sr.data.degradation.pipeline import degrade_image

    degradation = build_degradation(options, scale=scale)
    return degrade_folder(args.input, args.output, partial(degrade_image, degradation), scale=scale, seed=args.seed)


if __name__ == "__main__":
    run(main)
