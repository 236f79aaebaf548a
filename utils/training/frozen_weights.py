"""Pretrained weights of the networks that training uses but does not update: the extractor and those of losses."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from sed_sr.models.build import needs_extractor
from sed_sr.options.schema import Options
from sed_sr.utils.evaluation.metrics import ALEXNET, VGG16
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.extractor_file import (
    load_extractor_state,
    load_perceptual_state,
    published_perceptual_weights,
    published_weights,
)
from sed_sr.utils.weights.pretrained import locate, verify

BACKBONES = {"alex": ALEXNET, "vgg": VGG16}  # values of losses.lpips.net
DISTS_FILES = {"VGG16 of DISTS": VGG16.file, "calibration of DISTS": "DISTS_weights-f5e65c96.pth"}


class FrozenStates(NamedTuple):
    """State dicts for `build_train_step`; a network without one gets random weights."""

    extractor: dict[str, Tensor] | None = None
    losses: Mapping[str, dict[str, Tensor]] = MappingProxyType({})


def pretrained_weights(options: Options) -> dict[str, str]:
    """What the options give for each pretrained network that training needs: a weight file, or "random"."""
    sources = {}
    if needs_extractor(options):
        chosen = options.semantic_extractor
        published = chosen.weights is None
        sources["semantic extractor"] = published_weights(chosen.model) if published else chosen.weights
    perceptual = options.losses.perceptual
    if perceptual is not None:
        published = perceptual.weights is None
        source = published_perceptual_weights(perceptual.model) if published else perceptual.weights
        sources[f"{perceptual.model} of the perceptual loss"] = source
    if options.losses.dists is not None:
        sources |= {name: options.losses.dists.weights or file for name, file in DISTS_FILES.items()}
    if options.losses.lpips is not None:
        backbone = BACKBONES[options.losses.lpips.net]
        sources[f"{backbone.name} of the LPIPS loss"] = options.losses.lpips.weights or backbone.file
    return sources


def load_frozen_states(options: Options) -> FrozenStates:
    """Read the weights of the pretrained networks that training needs. Missing files are downloaded first.

    Raises:
        UserError: a file is missing, or cannot be read.
    """
    root, extractor, losses = options.paths.pretrained_root, None, {}
    if needs_extractor(options):
        chosen = options.semantic_extractor
        extractor = load_extractor_state(chosen.model, chosen.weights, pretrained_root=root)
    perceptual = options.losses.perceptual
    if perceptual is not None:
        losses["perceptual"] = load_perceptual_state(perceptual.model, perceptual.weights, pretrained_root=root)
    if options.losses.dists is not None and options.losses.dists.weights is None:
        losses["dists"] = {}
        for file in DISTS_FILES.values():
            losses["dists"] |= _load(file, root)
    if options.losses.lpips is not None and options.losses.lpips.weights is None:
        losses["lpips"] = _load(BACKBONES[options.losses.lpips.net].file, root)
    return FrozenStates(extractor, {name: state for name, state in losses.items() if state is not None})


def _load(file: str, pretrained_root: Path) -> dict[str, Tensor]:
    path = locate(file, pretrained_root=pretrained_root)
    return checkpoint.load(path, verified=verify(path))
