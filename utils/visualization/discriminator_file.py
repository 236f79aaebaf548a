"""The discriminator of a training state, with the semantic extractor that it was trained with, to be looked at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sed_sr.models.build import RANDOM, build_discriminator, build_extractor, pretrained_weights
from sed_sr.options.errors import UserError
from sed_sr.options.schema import Options, load_options
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.formats import unwrap

KEPT = ("name", "discriminator", "semantic_extractor")  # options that a discriminator and its extractor follow from


@dataclass(frozen=True)
class Judge:
    """A discriminator and what gives it its semantics."""

    discriminator: nn.Module  # in evaluation mode
    extractor: nn.Module | None  # None for a plain discriminator
    about: str  # for people: whose it is


def open_judge(path: Path, *, device: torch.device, pretrained_root: Path | None = None) -> Judge:
    """Build the discriminator of a training state, and the extractor of its options.

    Args:
        path: a file that holds the options of a run and the tensors of its discriminator, as training states do.
        pretrained_root: folder of the extractor's weights; None: that of the run.

    Raises:
        UserError: the file cannot be read, holds no discriminator, or one that does not fit its options; or the
            extractor's weights cannot be had.
    """
    state = checkpoint.load(path)
    tensors = _discriminator_in(state, path)
    options = _options_in(state, path, pretrained_root)
    extractor = build_extractor(options)
    discriminator = build_discriminator(options, extractor)
    try:
        tensors, wrappers = unwrap(tensors, path, markers=[discriminator.state_dict()])
        discriminator.load_state_dict(tensors)
    except (RuntimeError, TypeError, AttributeError):  # of names and shapes, or of what is no tensors at all
        raise UserError(f"the discriminator in {path} does not fit the options beside it") from None
    for network in filter(None, (discriminator, extractor)):
        network.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return Judge(discriminator, extractor, ", ".join(filter(None, (_in_words(state, options), wrappers))))


def _discriminator_in(state: dict[str, Any], path: Path) -> dict[str, Any]:
    if not (isinstance(state.get("options"), dict) and isinstance(state.get("train_step"), dict)):
        raise UserError(
            f"{path} holds no discriminator: a training state is expected, checkpoint/<run>/states/state_*.pth"
        )
    if "discriminator" not in state["train_step"]:
        raise UserError(f"{path} is of PSNR-oriented training, which has no discriminator to look at")
    return state["train_step"]["discriminator"]


def _options_in(state: dict[str, Any], path: Path, pretrained_root: Path | None) -> Options:
    """The options of a discriminator and its extractor; all others may be those of another version."""
    said = {key: value for key, value in state["options"].items() if key in KEPT}
    paths = state["options"].get("paths", {}) if pretrained_root is None else {"pretrained_root": str(pretrained_root)}
    try:
        # the generator does not matter here, and an option tree has one
        return load_options({**said, "generator": {"type": "rrdb"}, "paths": paths})
    except UserError as error:
        raise UserError(f"the options in {path} are not of this version: {error}") from None


def _in_words(state: dict[str, Any], options: Options) -> str:
    chosen = options.discriminator
    words = f"{chosen.type} discriminator of {options.name}"
    if isinstance(state.get("step"), int):
        words += f" at step {state['step']:,}"
    if chosen.fusion == "none":
        return f"{words}, without semantics"
    random = pretrained_weights(options)["semantic extractor"] == RANDOM
    weights = "random weights, as it was trained with" if random else "its pretrained weights"
    return f"{words}, {chosen.fusion} with semantics of {options.semantic_extractor.model} ({weights})"
