"""Make a benchmark from HR images: `python -m data.prepare.benchmark --input FOLDER --name Urban100 --scale 4`.

The ground truth is cut to sides that every scale divides, and LR is shrunk from it by `data.imresize`. The benchmarks
of SwinIR and BasicSR are made so; their LR files are reproduced bit for bit.
"""

import argparse
import functools
import os
import re
from pathlib import Path

import numpy as np

from sed_sr.data import images, png
from sed_sr.data.imresize import imresize
from sed_sr.data.prepare import jobs
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError

SIDE_UNIT_PX = 12  # sides are cut to a multiple of it, so that the ground truth is the same at scales 2, 3 and 4
# Where the HR images are in published folders: as BasicSR and KAIR, EDSR, DIV2K, SwinIR name it.
HR_FOLDERS = ("original", "HR", "DIV2K_valid_HR", "GTmod12")


def find_ground_truth(folder: Path, *, scale: int) -> tuple[str, dict[Path, str]]:
    """A description of the folder's layout, and its HR images with the name that each gets in the benchmark.

    Raises UserError when there is no HR image.
    """
    for name in HR_FOLDERS:
        if os.path.isdir(folder / name):
            return f"in {name}", {path: path.stem for path in images.list_images(folder / name)}
    selfexsr = folder / f"image_SRF_{scale}"
    listed = images.list_images(selfexsr if os.path.isdir(selfexsr) else folder)
    marked = [path for path in listed if path.stem.endswith("_HR")]
    if not marked:
        return "in a flat folder", {path: path.stem for path in listed}
    return "called *_HR", {path: re.sub(r"(_SRF_\d)?_HR$", "", path.stem) for path in marked}


def write_pair(
    named: tuple[Path, str], *, gt_folder: Path, lr_folder: Path, scale: int, compression_level: int, resume: bool
) -> int:
    """Write the ground truth and the LR image of an HR image and its name; return the number of files written.

    Both are 8-bit RGB (`images.read_rgb`), on which scores are computed.
    """
    source, name = named
    gt_path, lr_path = gt_folder / f"{name}.png", lr_folder / f"{name}.png"
    if resume and gt_path.exists() and lr_path.exists():
        return 0
    hr = images.read_rgb(source)
    height, width = (side // SIDE_UNIT_PX * SIDE_UNIT_PX for side in hr.shape[:2])
    if not height or not width:
        raise UserError(f"{source} is {hr.shape[1]}x{hr.shape[0]}, smaller than {SIDE_UNIT_PX}x{SIDE_UNIT_PX}")
    gt = np.ascontiguousarray(hr[:height, :width])
    for path, image in ((gt_path, gt), (lr_path, imresize(gt, scale=1 / scale))):
        images.write_image(path, image, compression_level=compression_level, durable=False)
    return 2


def remove_damaged_pair(named: tuple[Path, str], *, gt_folder: Path, lr_folder: Path) -> int:
    """Remove the damaged files among the outputs of `write_pair`; return how many."""
    _, name = named
    return jobs.remove_damaged([gt_folder / f"{name}.png", lr_folder / f"{name}.png"], is_intact=png.is_intact)


def main() -> int:
    """Make a benchmark from HR images; return the exit code, 1 when some images failed."""
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare.benchmark",
        description="Make a benchmark from HR images: GTmod12, cut to multiples of 12 pixels, and LRbicx4, shrunk as "
        "MATLAB does, both 8-bit RGB. The input is a folder of HR images alone, or of *_HR beside *_LR, or one that "
        "contains original, HR, DIV2K_valid_HR, GTmod12 or image_SRF_4.",
    )
    parser.add_argument("--input", type=Path, required=True, help="folder of HR images, in any of the usual layouts")
    parser.add_argument("--name", required=True, help="name of the benchmark, such as Urban100")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4, 8), default=4, help="how many times smaller (default 4)")
    parser.add_argument(
        "--output", type=Path, default=Path("Evaluation"), help="folder of the benchmarks (default Evaluation)"
    )
    jobs.add_arguments(parser)
    args = parser.parse_args()
    jobs.check_arguments(args)
    if args.name in ("", "..") or args.name != Path(args.name).name:
        raise UserError(f"--name is {args.name!r}; the name of a folder in {args.output} is expected, such as Urban100")

    layout, named = find_ground_truth(args.input, scale=args.scale)
    print(f"{args.input}: {len(named)} HR images {layout}")
    jobs.check_unique_names({path: f"{name}.png" for path, name in named.items()})
    output = args.output / args.name
    folders = {"gt_folder": output / f"GTmod{SIDE_UNIT_PX}", "lr_folder": output / f"LRbicx{args.scale}"}
    jobs.prepare_outputs(
        list(folders.values()),
        inputs=sorted({path.parent for path in named}),
        pattern=r".+\.png",
        overwrite=args.overwrite,
        resume=args.resume,
    )
    work = functools.partial(
        write_pair, **folders, scale=args.scale, compression_level=args.compression_level, resume=args.resume
    )
    return jobs.run(
        work,
        list(named.items()),
        workers=args.n_thread,
        made=f"images in {output}",
        outputs=list(folders.values()),
        remove_damaged_of=functools.partial(remove_damaged_pair, **folders),
    )


if __name__ == "__main__":
    run(main)
