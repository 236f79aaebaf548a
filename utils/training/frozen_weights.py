"""Pretrained weights of the networks that training uses but does not update: the extractor and those of losses."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from sed_sr.models.build import needs_extractor
from sed_sr.options.schema import Options
from sed_sr.utils.weights.extractor_file import (
    load_extractor_state,
    load_perceptual_state,
    published_perceptual_weights,
    published_weights,
)


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
    return FrozenStates(extractor, {name: state for name, state in losses.items() if state is not None})
