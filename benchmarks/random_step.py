"""The training step of a recipe with random weights and noise, which change neither its time nor its memory."""

from typing import Any

import torch

from sed_sr.data.batches import Batch
from sed_sr.models.build import build_generator, build_train_step
from sed_sr.models.train_step import TrainStep
from sed_sr.options.recipe import Override, load_options
from sed_sr.options.schema import Options
from sed_sr.utils.runtime.memory import disable_malloc_trim
from sed_sr.utils.weights.extractor_file import RANDOM


def random_recipe(opt: str, *chosen: Override, **more: Any) -> Options:
    """A recipe that needs no pretrained weights.

    Args:
        opt: the option file.
        chosen: what --set says.
        more: options that a benchmark sets, a double underscore for each dot: `train__precision="bf16"`.
    """
    more = {key.replace("__", "."): value for key, value in more.items()}
    more["semantic_extractor.weights"] = RANDOM
    losses = load_options(opt, chosen).losses
    if losses.perceptual is not None:
        more["losses.perceptual.weights"] = RANDOM
    for name in ("dists", "lpips"):
        if getattr(losses, name) is not None:
            more[f"losses.{name}.weights"] = RANDOM
    return load_options(opt, [*chosen, *(Override(key, value, f"{key}={value}") for key, value in more.items())])


def random_step(options: Options, device: torch.device) -> tuple[TrainStep, Batch]:
    """The step of such a recipe on `device`, and a batch for it."""
    step = random_train_step(options, device)
    batch = random_batch(options, device, scale=step.generator.scale)
    return step, batch._replace(sharp=batch.hr if step.sharpened else None)


def random_train_step(options: Options, device: torch.device) -> TrainStep:
    """The same without a batch."""
    if device.type == "cpu":
        disable_malloc_trim()  # as training does
    generator = build_generator(options)
    return build_train_step(options, generator=generator, device=device, extractor_state=None, loss_states={})


def random_batch(options: Options, device: torch.device, *, scale: int) -> Batch:
    """Noise of the sizes of a recipe, in channels_last."""
    side = options.dataset.hr_patch_px // scale
    lr, hr = (
        torch.rand(options.dataloader.batch_size, 3, px, px, device=device).to(memory_format=torch.channels_last)
        for px in (side, side * scale)
    )
    return Batch(lr, hr)
