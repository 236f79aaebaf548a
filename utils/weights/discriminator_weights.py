"""Discriminator weights in the file formats in use: recognised by their names, renamed to ours, and loaded.

Formats: this project (training states included), and BasicSR and Real-ESRGAN (`UNetDiscriminatorSN`,
`VGGStyleDiscriminator`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sed_sr.models.discriminators import ignore_semantics
from sed_sr.options.errors import UserError
from sed_sr.utils.weights.architecture import describe as describe_generator
from sed_sr.utils.weights.formats import differences_between, generator_weights, network_weights

# Names that all files of a discriminator contain.
MARKERS = (
    ("conv0.weight", "conv9.weight"),  # U-Net
    ("conv0.weight", "conv4.weight"),  # PatchGAN; in the U-Net, conv4 has spectral norm, and so another name
    ("conv0_0.weight", "linear2.weight"),  # VGG-style
)
# The tensors of `torch.nn.utils.spectral_norm`, and those of models/spectral_norm.py.
ORIGINAL, U, V = "parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v"
FROM_SPECTRAL_NORM = {"weight_orig": ORIGINAL, "weight_u": U, "weight_v": V}
FUSION_LAYERS = ("fusion", "merge")  # what a semantic discriminator has and a plain one lacks


@dataclass(frozen=True)
class DiscriminatorWeights:
    """A discriminator's weights under the names of this project's modules."""

    path: Path
    state: dict[str, Tensor]  # float32 on the CPU
    kind: str  # for messages: "a semantic U-Net (64 features, ...)"
    stripped: str | None  # of wrappers, for messages


def discriminator_weights(payload: dict, path: Path) -> DiscriminatorWeights:
    """Recognise a discriminator's weights in a file. Half precision becomes float32.

    Args:
        payload: the content of the file, as `checkpoint.load` returns it.
        path: of the file, for messages.

    Raises:
        UserError: the file holds a generator, a training state without a discriminator, or no weights that can be used.
    """
    if isinstance(payload.get("train_step"), dict):
        if "discriminator" not in payload["train_step"]:
            raise UserError(f"{path} is a training state of PSNR-oriented training, which has no discriminator")
        payload = {"params": payload["train_step"]["discriminator"]}
    state, _, stripped = network_weights(payload, path, what="discriminator", markers=MARKERS)
    try:
        ours = _in_our_names(state)
        kind = _describe(ours)
    except (IndexError, KeyError, RuntimeError, ZeroDivisionError):
        raise UserError(
            f"{path} has the names of a discriminator's weights, but some of them are missing or have other shapes"
        ) from None
    if kind is None and describe_generator((generator := generator_weights(payload, path)).state):
        raise UserError(f"{path} holds {generator.kind}, but the weights of a discriminator were expected")
    return DiscriminatorWeights(path, ours, kind or "an unknown network", stripped)


def load_shared(discriminator: nn.Module, weights: DiscriminatorWeights) -> str:
    """Load the weights of a file; if only one of the two networks is semantic, those that both have.

    A semantic discriminator that starts from a plain one, in training mode, returns the same logits at first.

    Returns:
        A description of what was loaded.

    Raises:
        UserError: they do not fit; `discriminator` is unchanged.
    """
    own, given = discriminator.state_dict(), weights.state
    ours, theirs = _traits_of(own), _traits_of(given)
    differing = [trait for trait in ours if trait in theirs and theirs[trait] != ours[trait]]
    if differing:
        traits = " and ".join(f"{trait} {theirs[trait]} where the options ask for {ours[trait]}" for trait in differing)
        raise UserError(f"{weights.path} holds {weights.kind}, with {traits}")
    total, in_file, semantic = len(own), len(given), ("fusion" in ours, "fusion" in theirs)
    if semantic[0] != semantic[1]:
        own, given = _without_fusion(own), _without_fusion(given)
    differences = differences_between(given, own)
    if differences:
        raise UserError(
            f"{weights.path} holds {weights.kind}, which does not fit the discriminator of the options ({differences})"
        )
    discriminator.load_state_dict(given, strict=False)  # the fusion blocks may be missing
    found = f"starts from {weights.path}: {weights.kind}"
    if semantic == (True, False):
        ignore_semantics(discriminator)
        return (
            f"{found}; {len(given)} of {total} tensors, those that it shares with the semantic one; the fusion blocks "
            "start from random weights, and do not affect the logits at first"
        )
    if semantic == (False, True):
        return f"{found}; {len(given)} of its {in_file} tensors, without the fusion blocks"
    return found


def _in_our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names of this project's modules."""
    ours = {}
    for name, value in state.items():
        layer, _, tensor = name.rpartition(".")
        if tensor in FROM_SPECTRAL_NORM:
            ours[f"{layer}.{FROM_SPECTRAL_NORM[tensor]}"] = value
        elif f"{name}_orig" not in state:  # else the quotient, which PyTorch before 1.0 saved in place of v
            ours[name] = value
    for name in [name for name in ours if name.endswith(U)]:
        layer = name.removesuffix(U)
        if layer + V not in ours and layer + ORIGINAL in ours:
            ours[layer + V] = F.normalize(ours[layer + ORIGINAL].flatten(1).T @ ours[name], dim=0)
    return ours


def _traits_of(state: dict[str, Tensor]) -> dict[str, Any]:
    """The type and the sizes of a discriminator in our names; empty for an unknown network."""
    if {"conv0_0.weight", "linear2.weight"} <= state.keys():
        image_px = 256 if "conv5_0.weight" in state else 128
        return {"type": f"VGG for images of {image_px} px", "features": state["conv0_0.weight"].shape[0]}
    if {"conv0.weight", "conv9.weight"} <= state.keys():
        traits: dict[str, Any] = {"type": "U-Net"}
    elif {"conv0.weight", "conv4.weight"} <= state.keys():
        traits = {"type": "PatchGAN"}
    else:
        return {}
    traits["features"] = state["conv0.weight"].shape[0]
    if "fusion1.norm.weight" in state:
        traits["fusion"] = "cross-attention" if "fusion1.image_in.weight" in state else "concatenation"
        traits["semantic channels"] = state["fusion1.norm.weight"].shape[0]
    return traits


def _describe(state: dict[str, Tensor]) -> str | None:
    """`a semantic U-Net (64 features, cross-attention, 1024 semantic channels)`; None for an unknown network."""
    traits = _traits_of(state)
    if not traits:
        return None
    if "fusion" not in traits:
        return f"a plain {traits['type']} ({traits['features']} features)"
    sizes = f"{traits['features']} features, {traits['fusion']}, {traits['semantic channels']} semantic channels"
    return f"a semantic {traits['type']} ({sizes})"


def _without_fusion(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(FUSION_LAYERS)}
