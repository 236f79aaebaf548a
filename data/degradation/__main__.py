"""Look at the degradation that a recipe trains with: `python -m data.degradation --input photo.png --output sheet.png`.

The sheet shows what each operation makes of the busiest square of a photograph, in several draws. Of a folder of HR
images, each is degraded once instead, and the output is a folder too: a benchmark of test_HR and test_LR. The recipe is
train_rrdb_P+SeD_real.yml where --opt names no other; --set changes an option, and the sheet shows what that does.
"""

from pathlib import Path

import numpy as np

from sed_sr.data.build import build_training_pairs
from sed_sr.data.images import read_rgb, write_image
from sed_sr.data.prepare.degrade import degrade_folder
from sed_sr.options.arguments import option_parser, options_from
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.utils.visualization.degradation_sheet import DETAIL_PX, busiest_square, contact_sheet

RECIPE = Path(__file__).parents[2] / "options" / "train_rrdb_P+SeD_real.yml"
SCALE = 4
MAX_SAMPLES = 50


def main() -> int:
    parser = option_parser(__doc__, folders=(), opt_required=False)
    parser.prog = "python -m data.degradation"
    parser.set_defaults(opt=RECIPE)
    parser.add_argument("--input", type=Path, required=True, metavar="PATH", help="photograph, or folder of HR images")
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="the sheet, a PNG file; or a folder")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    parser.add_argument("--samples", type=int, default=4, help="number of draws on the sheet (default 4)")
    args = parser.parse_args()
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: a number that is not negative is expected")
    if not 1 <= args.samples <= MAX_SAMPLES:
        raise UserError(f"--samples {args.samples}: 1 to {MAX_SAMPLES} are expected")
    options = options_from(args)
    if options.degradation is None:
        raise UserError(f"{args.opt} has no degradation: it trains on LR images that are there already")
    pairs = build_training_pairs(options, scale=SCALE)
    if args.input.is_dir():
        return degrade_folder(args.input, args.output, pairs.degradation, seed=args.seed)
    if args.output.suffix != ".png":
        raise UserError(f"--output {args.output}: the sheet is a PNG file, give a name that ends in .png")
    if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        raise UserError(f"{args.input} would be written over; give another --output")
    hr = crop_hr(args.input, hr_px=options.degradation.hr_px)
    sheet = contact_sheet(hr, pairs.degradation, sharpening=pairs.sharpening, seed=args.seed, samples=args.samples)
    write_image(args.output, sheet)
    print(f"{args.samples} draw{'s' * (args.samples > 1)} of {args.input}: {args.output}")
    return 0


def crop_hr(path: Path, *, hr_px: int) -> np.ndarray:
    """The busiest square of hr_px of a photograph, or of its shorter side where that is smaller; (P, P, 3) uint8.

    Raises:
        UserError: it cannot be read, or it or hr_px is too small for the sheet.
    """
    photo = read_rgb(path)
    side_px = min(hr_px, *photo.shape[:2]) // SCALE * SCALE
    if side_px < DETAIL_PX:
        height, width = photo.shape[:2]
        raise UserError(
            f"{path} is {height}x{width} and degradation.hr_px is {hr_px}; the sheet shows {DETAIL_PX}x{DETAIL_PX} of "
            "them, so neither can be smaller"
        )
    top, left = busiest_square(photo, side_px)
    return photo[top : top + side_px, left : left + side_px]


if __name__ == "__main__":
    run(main)
