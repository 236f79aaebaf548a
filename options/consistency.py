"""Conflicts between options: values that are valid alone but not together."""

from collections.abc import Iterator
from itertools import pairwise

from sed_sr.options.schema import DegradationOptions, DegradationStageOptions, LossOptions, Options, SwinIROptions

Conflicts = Iterator[tuple[str, str]]  # key path, what is wrong with it


def find_conflicts(options: Options) -> Conflicts:
    """(key path, what is wrong with it) for every value that does not go together with another one."""
    yield from _of_losses(options)
    yield from _of_networks(options)
    yield from _of_training_data(options)
    yield from _of_schedule(options)
    best_by = options.validation.best_by
    if best_by is not None and best_by not in options.validation.metrics:
        yield "validation.best_by", f"is {best_by}, which is not among validation.metrics"
    if best_by is not None and not options.validation.benchmarks:
        yield "validation.best_by", "needs a benchmark, but validation.benchmarks is empty"


def _of_losses(options: Options) -> Conflicts:
    losses, discriminator = options.losses, options.discriminator
    if discriminator is not None and losses.gan is None:
        yield "losses.gan", "is null, but a discriminator is given; set discriminator: null, or give losses.gan"
    if discriminator is None and losses.gan is not None:
        yield "losses.gan", "needs a discriminator, but discriminator is null; set losses.gan: null, or give one"
    if discriminator is None and options.train.start_discriminator_from is not None:
        yield "train.start_discriminator_from", "needs a discriminator, but discriminator is null"
    for name in ("feature_matching", "r1"):
        if discriminator is None and getattr(losses, name) is not None:
            yield f"losses.{name}", f"needs a discriminator, but discriminator is null; set losses.{name}: null"
    if losses.artifact is not None and options.train.ema_decay is None:
        yield "losses.artifact", "needs averaged weights, but train.ema_decay is null; set it, such as to 0.999"
    if losses == LossOptions(pixel=None, perceptual=None, gan=None):
        yield "losses", "has no term; give at least one, for example pixel"
    # The window of the first scale; the poolings of both backbones.
    sides = {"ms_ssim": 11, "lpips": 31 if losses.lpips is not None and losses.lpips.net == "alex" else 16}
    for name, side in sides.items():
        patch_px = options.dataset.hr_patch_px
        if getattr(losses, name) is not None and patch_px < side:
            yield "dataset.hr_patch_px", f"is {patch_px}; with losses.{name} it should be at least {side}"


def _of_networks(options: Options) -> Conflicts:
    patch_px, discriminator, generator = options.dataset.hr_patch_px, options.discriminator, options.generator
    if patch_px % options.scale:
        yield "dataset.hr_patch_px", f"is {patch_px}; should be a multiple of the scale, {options.scale}"
    if discriminator is not None:
        if discriminator.type == "vgg" and discriminator.fusion != "none":
            wanted = "but a vgg discriminator takes no semantics; set discriminator.fusion: none"
            yield "discriminator.fusion", f"is {discriminator.fusion}, {wanted}"
        if discriminator.type == "vgg" and patch_px not in (128, 256):
            yield "dataset.hr_patch_px", f"is {patch_px}; with a vgg discriminator it should be 128 or 256"
        # The other discriminators and the semantic extractor halve HR crops up to four times.
        elif patch_px % 16:
            yield "dataset.hr_patch_px", f"is {patch_px}; with a discriminator it should be a multiple of 16"
        if discriminator.type == "patch" and patch_px < 32:
            yield "dataset.hr_patch_px", f"is {patch_px}; with a patch discriminator it should be at least 32"
        if discriminator.features % 8:
            yield "discriminator.features", f"is {discriminator.features}; should be a multiple of 8"
    if isinstance(generator, SwinIROptions):
        if len(generator.depths) != len(generator.heads):
            counts = f"{len(generator.heads)} entries, but generator.depths has {len(generator.depths)}"
            yield "generator.heads", f"has {counts}; both need one for each residual group"
        odd = [heads for heads in generator.heads if generator.embed_dim % heads]
        if odd:
            yield "generator.heads", f"has {odd[0]}, which does not divide embed_dim {generator.embed_dim}"


def _of_training_data(options: Options) -> Conflicts:
    dataset, degradation = options.dataset, options.degradation
    if degradation is not None:
        if dataset.lr is not None:
            yield "dataset.lr", f"is {dataset.lr}, but degradation makes LR from HR; set dataset.lr: null"
        yield from _of_degradation(degradation, dataset.hr_patch_px, scale=options.scale)
    elif dataset.lr is None and options.scale == 1:
        yield "dataset.lr", "is null, but bicubic LR of scale 1 is HR itself; give dataset.lr or degradation"
    elif dataset.lr is not None and len(dataset.hr) > 1:
        yield "dataset.hr", f"has {len(dataset.hr)} folders; with LR images (dataset.lr) it should have one"


def _of_degradation(degradation: DegradationOptions, hr_patch_px: int, *, scale: int) -> Conflicts:
    if degradation.hr_px % scale or degradation.hr_px < hr_patch_px:
        expected = f"a multiple of the scale, {scale}, and at least dataset.hr_patch_px ({hr_patch_px})"
        yield "degradation.hr_px", f"is {degradation.hr_px}; should be {expected}"
    if degradation.sharpening is None and degradation.sharpened_targets:
        yield "degradation.sharpened_targets", "needs degradation.sharpening, which is null"
    if degradation.sharpening is not None and degradation.sharpening.kernel_px % 2 == 0:
        yield "degradation.sharpening.kernel_px", f"is {degradation.sharpening.kernel_px}; should be odd"
    yield from _of_stage(degradation.first, "degradation.first")
    yield from _of_stage(degradation.second, "degradation.second")


def _of_stage(stage: DegradationStageOptions, key: str) -> Conflicts:
    for part in ("kernel_kinds", "resize"):
        total = sum(getattr(stage, part).model_dump().values())
        if abs(total - 1) > 1e-6:
            yield f"{key}.{part}", f"adds up to {total:g}; probabilities should add up to 1"
    smallest, largest = stage.kernel_px
    if smallest % 2 == 0 or largest % 2 == 0 or smallest > largest:
        yield f"{key}.kernel_px", f"is {list(stage.kernel_px)}; should be two odd sides, the smaller one first"
    if stage.jpeg_quality[0] > stage.jpeg_quality[1]:
        yield f"{key}.jpeg_quality", f"is {list(stage.jpeg_quality)}; should be the lower one first"
    for part in ("resize_range", "beta_generalized", "beta_plateau"):  # values are drawn on both sides of 1
        low, high = getattr(stage, part)
        if not low <= 1 <= high:
            yield f"{key}.{part}", f"is {[low, high]}; should contain 1"


def _of_schedule(options: Options) -> Conflicts:
    milestones = options.optimizer.milestones
    if any(a >= b for a, b in pairwise(milestones)):
        yield "optimizer.milestones", f"is {list(milestones)}; should be in ascending order"
    if options.optimizer.warmup_steps >= options.train.total_steps:
        yield "optimizer.warmup_steps", f"should be less than the {options.train.total_steps} steps of the run"
