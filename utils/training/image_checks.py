"""Checks of the training images before a run starts."""

from functools import partial

from tqdm import tqdm

from sed_sr.data.datasets import HRPatches, PairedImages, TrainingSet
from sed_sr.data.image_folders import check_readable
from sed_sr.data.pair_content import check_content
from sed_sr.utils.training.checklist import Checklist

COMPARED_PAIRS = 16  # LR with HR downscaled, before every run; takes well below a second
COMPARED_PAIRS_THOROUGHLY = 256  # with --check


def check_training_images(dataset: TrainingSet, checks: Checklist, *, seed: int, thorough: bool) -> None:
    """Decode some pairs of given LR images and check that LR is HR downscaled.

    Args:
        checks: receives the results.
        seed: determines which pairs are compared.
        thorough: decode all images, and compare more pairs.
    """
    if thorough:
        images = sum(len(folder.files) for folder in dataset.folders)
        with tqdm(total=images, desc="reading every image", unit="image", leave=False, disable=None) as bar:
            read = partial(check_readable, dataset.folders, on_image=bar.update)
            checks.check("readable", read, lambda _: f"all {images:,} images")
    if not isinstance(dataset, PairedImages):
        return
    samples = COMPARED_PAIRS_THOROUGHLY if thorough else COMPARED_PAIRS
    compare = partial(check_content, dataset.pairs, scale=dataset.scale, samples=samples, seed=seed)
    checks.check("LR is HR downscaled", compare, lambda compared: f"{compared} of {len(dataset):,} pairs compared")


def format_dataset(dataset: TrainingSet) -> str:
    """The number of pairs or HR images of a training set, for the log."""
    if isinstance(dataset, PairedImages):
        return f"{len(dataset):,} pairs"
    folders = ", ".join(f"{len(folder):,} in {folder.root}" for folder in dataset.folders)
    lr = "bicubic" if isinstance(dataset, HRPatches) else "degraded"
    return f"{len(dataset):,} samples in an epoch, of HR images: {folders}, with {lr} LR"
