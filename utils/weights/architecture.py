"""Detect the architecture, options and scale of an RRDB or SwinIR from the names and shapes in its state dict."""

import math
import re
from typing import Any

from torch import Tensor

from sed_sr.models.rrdb import RESIZING
from sed_sr.models.swinir import UPSAMPLER_SCALES

TYPES = ("rrdb", "swinir")  # of generators that can be detected
X2_OR_X3 = "2 or 3"  # the scale of an RRDB with one upsampling, whose factor no tensor shows
JPEG_WINDOW = 7  # of the SwinIR for JPEG artifacts, which computes in [0, 255]
UPSAMPLER_NAMES = {
    "pixelshuffle": "pixelshuffle",
    "nearest+conv": "nearest+conv",
    "pixelshuffledirect": "pixelshuffledirect, as in lightweight SR",
    "none": "without upsampling, as for denoising",
}


def detect_architecture(
    state: dict[str, Tensor], *, stated_scale: int | None = None
) -> tuple[dict[str, Any], int] | None:
    """The `generator:` options (options/schema.py) and the scale of the network with this state dict.

    All options but those that leave no trace in the tensors (SwinIR's `drop_path`, which is used in training only).

    Args:
        state: in this project's names.
        stated_scale: what the file states. It matters for an RRDB with one upsampling only: ours has the scale 3.

    Returns:
        None for an unknown network, and for a relative of RRDB or SwinIR that this project has no options for.
    """
    traits = traits_of(state)
    if not traits or traits["output channels"] != 3:
        return None
    scale, unshuffle = traits["scale"], traits["unshuffle"]
    if traits["architecture"] == "RRDB":
        if scale == X2_OR_X3:
            scale = stated_scale
        if scale not in RESIZING or unshuffle != RESIZING[scale][0] or traits["input channels"] != 3 * unshuffle**2:
            return None
        return {"type": "rrdb", **{option: traits[option] for option in ("features", "blocks", "growth")}}, scale
    upsampler = traits["upsampler"]
    if traits["input channels"] != 3 or scale not in UPSAMPLER_SCALES[upsampler]:
        return None
    if upsampler == "none" and traits["window"] == JPEG_WINDOW:
        return None
    options = ("embed_dim", "depths", "heads", "window", "mlp_ratio", "upsampler", "resi_connection")
    return {"type": "swinir", **{option: traits[option] for option in options}}, scale


def describe(state: dict[str, Tensor]) -> str | None:
    """The network with this state dict, for messages: `RRDB (23 blocks, 64 features, growth 32), x4`.

    Relatives of this project's networks are described with what differs. None for unknown networks.
    """
    traits = traits_of(state)
    if not traits:
        return None
    if traits["architecture"] == "RRDB":
        sizes = "{} block{}, {} features, growth {}".format(
            traits["blocks"], "" if traits["blocks"] == 1 else "s", traits["features"], traits["growth"]
        )
    else:
        sizes = (
            f"{len(traits['depths'])} groups of {_each(traits['depths'])} blocks, {traits['embed_dim']} features, "
            f"{_each(traits['heads'])} heads, window {traits['window']}, MLP ratio {traits['mlp_ratio']:g}, "
            f"{UPSAMPLER_NAMES[traits['upsampler']]}"
        )
    differences = ""
    if traits["resi_connection"] == "3conv":
        differences += ", with three convolutions after each group (3conv), as in SwinIR-L"
    if traits["unshuffle"] > 1:
        differences += f", on images pixel-unshuffled by {traits['unshuffle']}"
    elif (channels := (traits["input channels"], traits["output channels"])) != (3, 3):
        differences += ", from {} channels to {}".format(*channels)
    return f"{traits['architecture']} ({sizes}), x{traits['scale']}{differences}"


def traits_of(state: dict[str, Tensor]) -> dict[str, Any]:
    """The sizes of an RRDB or SwinIR, those that are options under the options' names; empty for an unknown network."""
    try:
        if {"conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight"} <= state.keys():
            return _rrdb_traits(state)
        if {"conv_first.weight", _bias_table(0)} <= state.keys() and not _has_other_layers(state):
            return _swinir_traits(state)
    except (IndexError, KeyError, ValueError, ZeroDivisionError):
        pass  # the names are known, but no such layer has these shapes
    return {}


def _rrdb_traits(state: dict[str, Tensor]) -> dict[str, Any]:
    features, inputs = state["conv_first.weight"].shape[:2]
    outputs = state["conv_last.weight"].shape[0]
    # Real-ESRGAN's x2 and x1 networks are the x4 network on pixel-unshuffled images.
    unshuffle = math.isqrt(inputs // outputs) if inputs in (4 * outputs, 16 * outputs) else 1
    upsamplings = _layers("upconv", state)
    return {
        "architecture": "RRDB",
        "blocks": len({name.split(".")[1] for name in state if name.startswith("RRDB_trunk.")}),
        "features": features,
        "growth": state["RRDB_trunk.0.RDB1.conv1.weight"].shape[0],
        "input channels": inputs,
        "output channels": outputs,
        "resi_connection": "1conv",
        "unshuffle": unshuffle,
        "scale": X2_OR_X3 if unshuffle == upsamplings == 1 else 2**upsamplings // unshuffle,
    }


def _swinir_traits(state: dict[str, Tensor]) -> dict[str, Any]:
    dim, inputs = state["conv_first.weight"].shape[:2]
    blocks = {name.split(".")[1]: set() for name in state if name.startswith("layers.")}
    for name in state:
        if block := re.match(r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\.", name):
            blocks[block[1]].add(block[2])
    tables = [state[_bias_table(group)].shape for group in range(len(blocks))]
    upsampler, scale, outputs = _swinir_upsampler(state)
    return {
        "architecture": "SwinIR",
        "depths": tuple(len(blocks[str(group)]) for group in range(len(blocks))),
        "heads": tuple(heads for _, heads in tables),
        "embed_dim": dim,
        "window": (math.isqrt(tables[0][0]) + 1) // 2,  # the table has (2 window - 1)^2 rows
        "mlp_ratio": state["layers.0.residual_group.blocks.0.mlp.fc1.weight"].shape[0] / dim,
        "input channels": inputs,
        "output channels": outputs,
        "resi_connection": "1conv" if "conv_after_body.weight" in state else "3conv",
        "unshuffle": 1,
        "upsampler": upsampler,
        "scale": scale,
    }


def _swinir_upsampler(state: dict[str, Tensor]) -> tuple[str, int, int]:
    """Its name, the scale, and the channels of SR."""
    shuffles = [state[name].shape for name in state if re.fullmatch(r"upsample\.\d\.weight", name)]
    if "conv_last.weight" not in state:
        inputs = state["conv_first.weight"].shape[1]
        return "pixelshuffledirect", math.isqrt(shuffles[0][0] // inputs), inputs
    outputs = state["conv_last.weight"].shape[0]
    if "conv_up1.weight" in state:
        return "nearest+conv", 2 ** _layers("conv_up", state), outputs
    if shuffles:
        return "pixelshuffle", math.prod(math.isqrt(after // before) for after, before, *_ in shuffles), outputs
    return "none", 1, outputs


def _has_other_layers(state: dict[str, Tensor]) -> bool:
    """Whether the groups have layers that SwinIR's do not have, as those of HAT and other networks built on it do."""
    own = re.compile(
        r"residual_group\.blocks\.\d+\.(norm1|norm2|mlp\.fc[12]|attn_mask$"
        r"|attn\.(qkv|proj|relative_position_bias_table|relative_position_index))\b|conv\b"
    )
    return not all(own.match(name.split(".", 2)[2]) for name in state if re.match(r"layers\.\d+\.", name))


def _bias_table(group: int) -> str:
    return f"layers.{group}.residual_group.blocks.0.attn.relative_position_bias_table"


def _layers(name: str, state: dict[str, Tensor]) -> int:
    return sum(bool(re.fullmatch(rf"{name}\d\.weight", key)) for key in state)


def _each(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))
