"""From the option tree to the training set, the loader that reads it, and the training pairs."""

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor

from sed_sr.data.batches import DegradedPairs, GivenPairs
from sed_sr.data.datasets import HRImages, PairedImages
from sed_sr.data.degradation.draws import Stage
from sed_sr.data.degradation.pipeline import Degradation
from sed_sr.data.degradation.sharpen import sharpen
from sed_sr.data.loader import Loader, make_loader, worker_count
from sed_sr.options.errors import UserError
from sed_sr.options.schema import DegradationOptions, Options


def build_dataset(options: Options, *, scale: int) -> PairedImages | HRImages:
    """The training set. Its images are checked from their headers.

    Raises:
        UserError: a folder is named twice or cannot be used, or images do not fit the options.
    """
    chosen = options.dataset
    hr_roots = {options.paths.data_root / name: weight for name, weight in chosen.hr.items()}
    if len(hr_roots) < len(chosen.hr):
        raise UserError(f"dataset.hr names a folder twice: {', '.join(chosen.hr)}")
    random = {"augment": chosen.augment, "seed": options.seed}
    if options.degradation is not None:
        return HRImages(hr_roots, hr_px=options.degradation.hr_px, **random)
    (hr_root,) = hr_roots
    assert chosen.lr is not None  # options without LR and without a degradation are refused
    lr_root = options.paths.data_root / chosen.lr.replace("{scale}", str(scale))
    return PairedImages(hr_root, lr_root, scale=scale, lr_patch_px=chosen.hr_patch_px // scale, **random)


def build_loader(
    options: Options,
    dataset: PairedImages | HRImages,
    batches: Iterable[list],
    *,
    processes_here: int,
    device_type: str,
) -> Loader:
    """The loader of these batches of keys; see `make_loader`.

    Args:
        processes_here: training processes that share this machine's CPU cores.
    """
    num_workers = worker_count(options.dataloader.num_workers, processes_here)
    return make_loader(dataset, batches, num_workers=num_workers, device_type=device_type)


def build_training_pairs(options: Options, *, scale: int) -> GivenPairs | DegradedPairs:
    """The function that makes training pairs of what the loader yields."""
    chosen = options.degradation
    if chosen is None:
        return GivenPairs()
    return DegradedPairs(
        build_degradation(chosen, scale=scale),
        lr_patch_px=options.dataset.hr_patch_px // scale,
        sharpening=build_sharpening(chosen),
        pool_pairs=chosen.pool_pairs,
    )


def build_degradation(chosen: DegradationOptions, *, scale: int) -> Degradation:
    """The degradation that makes LR from HR."""
    return Degradation(
        first=Stage(**chosen.first.model_dump()),
        second=Stage(**chosen.second.model_dump()),
        final_sinc_probability=chosen.final_sinc_probability,
        scale=scale,
    )


def build_sharpening(chosen: DegradationOptions) -> Callable[[Tensor], Tensor] | None:
    """The function that sharpens HR before the degradation; None: it is not sharpened."""
    return None if chosen.sharpening is None else partial(sharpen, **chosen.sharpening.model_dump())
