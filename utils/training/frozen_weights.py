"""Pretrained weights of the networks that training uses but does not update: semantic extractor and VGG19."""

from typing import NamedTuple

from torch import Tensor

from sed_sr.models.build import needs_extractor
from sed_sr.options.schema import Options
from sed_sr.utils.weights.extractor_file import load_extractor_state, load_vgg_state, published_weights


class FrozenStates(NamedTuple):
    """State dicts for `build_train_step`; None gives random weights."""

    extractor: dict[str, Tensor] | None = None
    vgg: dict[str, Tensor] | None = None


def pretrained_weights(options: Options) -> dict[str, str]:
    """What the options give for each pretrained network that training needs: a weight file, or "random"."""
    sources = {}
    if needs_extractor(options):
        chosen = options.semantic_extractor
        published = chosen.weights is None
        sources["semantic extractor"] = published_weights(chosen.model) if published else chosen.weights
    if options.losses.perceptual is not None:
        sources["VGG19 of the perceptual loss"] = options.losses.perceptual.vgg_weights
    return sources


def load_frozen_states(options: Options) -> FrozenStates:
    """Read the weights of the pretrained networks that training needs. Missing files are downloaded first.

    Raises:
        UserError: a file is missing, or cannot be read.
    """
    root, extractor, vgg = options.paths.pretrained_root, None, None
    if needs_extractor(options):
        chosen = options.semantic_extractor
        extractor = load_extractor_state(chosen.model, chosen.weights, pretrained_root=root)
    if options.losses.perceptual is not None:
        vgg = load_vgg_state(options.losses.perceptual.vgg_weights, pretrained_root=root)
    return FrozenStates(extractor, vgg)
