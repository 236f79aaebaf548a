"""Read the discriminator of a run, with the semantic extractor that it was trained with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sed_sr.models.build import build_discriminator, build_extractor, needs_extractor
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import load_options
from sed_sr.options.schema import Options
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.discriminator_weights import discriminator_weights
from sed_sr.utils.weights.extractor_file import RANDOM, load_extractor_state

USED_OPTIONS = ("name", "discriminator", "semantic_extractor")  # what the discriminator and the extractor depend on


@dataclass(frozen=True)
class TrainedDiscriminator:
    """A discriminator and the extractor of its semantic features."""

    discriminator: nn.Module  # in evaluation mode
    extractor: nn.Module | None  # None for a plain discriminator
    about: str  # description for users


def load_discriminator(
    path: Path, *, device: torch.device, pretrained_root: Path | None = None
) -> TrainedDiscriminator:
    """Build the discriminator of a run, and the extractor of its options.

    Args:
        path: discriminator_latest.pth or a training state.
        pretrained_root: folder of the extractor's weights; None: the run's.

    Raises:
        UserError: the file cannot be read, holds no discriminator, or one that does not fit its options or has no
            views; or the extractor's weights are missing.
    """
    state = checkpoint.load(path)
    weights = discriminator_weights(state, path)
    if not isinstance(state.get("options"), dict):
        raise UserError(
            f"{path} holds {weights.kind}, without the options of its run: expected was "
            "checkpoint/<run>/discriminator_latest.pth or a training state"
        )
    options = _load_options(state, path, pretrained_root)
    if options.discriminator is not None and options.discriminator.type == "vgg":
        raise UserError(
            f"{path} holds {weights.kind}, which has one logit for a whole image: only patch and "
            "unet discriminators can be drawn"
        )
    extractor = build_extractor(options, _extractor_state(options))
    discriminator = build_discriminator(options, extractor)
    misfit = UserError(f"the discriminator in {path} does not fit the options stored with it")
    if discriminator is None:
        raise misfit
    try:
        discriminator.load_state_dict(weights.state)
    except RuntimeError:  # wrong names or shapes
        raise misfit from None
    for network in filter(None, (discriminator, extractor)):
        network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    about = ", ".join(filter(None, (_describe(state, options), weights.stripped)))
    return TrainedDiscriminator(discriminator, extractor, about)


def _load_options(state: dict[str, Any], path: Path, pretrained_root: Path | None) -> Options:
    """The options of the discriminator and its extractor. The others may come from another version of this project."""
    used = {key: value for key, value in state["options"].items() if key in USED_OPTIONS}
    paths = state["options"].get("paths", {}) if pretrained_root is None else {"pretrained_root": str(pretrained_root)}
    try:
        # Options need a generator. Which one makes no difference here.
        return load_options({**used, "generator": {"type": "rrdb"}, "paths": paths})
    except UserError as error:
        raise UserError(f"the options in {path} are not valid in this version: {error}") from None


def _extractor_state(options: Options) -> dict[str, Tensor] | None:
    if not needs_extractor(options):
        return None
    chosen = options.semantic_extractor
    return load_extractor_state(chosen.model, chosen.weights, pretrained_root=options.paths.pretrained_root)


def _describe(state: dict[str, Any], options: Options) -> str:
    chosen = options.discriminator
    assert chosen is not None  # it has been built
    text = f"{chosen.type} discriminator of {options.name}"
    if isinstance(state.get("step"), int):
        text += f" at step {state['step']:,}"
    if not needs_extractor(options):
        return f"{text}, without semantics"
    weights = (
        "random weights, as in its training" if options.semantic_extractor.weights == RANDOM else "pretrained weights"
    )
    return f"{text}, {chosen.fusion} with semantics of {options.semantic_extractor.model} ({weights})"
