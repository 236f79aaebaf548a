"""Frozen feature maps of pretrained vision models: CLIP's image encoders and timm's models.

Sources: Radford et al., "CLIP", ICML 2021; Wightman, timm.
"""

import difflib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from sed_sr.models.partial_load import load_part
from sed_sr.options.errors import UserError

CLIP_RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
# CLIP's ViTs are taken from timm, which interpolates positional embeddings to the image's size. OpenAI trained them
# with QuickGELU.
CLIP_VITS = {
    "ViT-B-32": "vit_base_patch32_clip_quickgelu_224.openai",
    "ViT-B-16": "vit_base_patch16_clip_quickgelu_224.openai",
    "ViT-L-14": "vit_large_patch14_clip_quickgelu_224.openai",
    "ViT-L-14-336": "vit_large_patch14_clip_quickgelu_336.openai",
}
CLIP_TOWERS = (*CLIP_RESNETS, *CLIP_VITS)
CLIP_PREFIX = "visual."  # of the image encoder's weights in a whole CLIP model


class FrozenBackbone(nn.Module):
    """Image -> feature maps of some layers of a pretrained model. All parameters are frozen.

    The module stays in evaluation mode, also after `train()`, so that features do not depend on the other images of the
    batch.

    Attributes:
        layers: the chosen layers, in the order in which they were given.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str,
        layers: Sequence[str] | None,
        *,
        state: dict[str, Tensor] | None,
        batch_statistics: bool = False,
    ):
        """Build the model up to the deepest of the layers. Later layers are dropped.

        Args:
            model: `clip/<model>`, with open_clip's names for OpenAI's models, or `timm/<model>`.
            layers: each by its name in the model, or by a stride, such as "16", which stands for the deepest layer of
                that stride. Outputs are taken before any norm that follows the layer. None: all layers.
            state: the model's weights (`utils.weights.extractor_file`); entries that are not needed are ignored. None
                gives random weights, the same in every process, for tests.
            batch_statistics: stay in training mode instead: BatchNorm normalises with the statistics of the batch, and
                its running statistics drift.

        Raises:
            UserError: the model or a layer does not exist; the model accepts images of one size only; a weight in
                `state` is missing or has another shape; `batch_statistics` is set for a model without BatchNorm.
        """
        super().__init__()
        self.batch_statistics = batch_statistics
        _, name = parse_model_name(model)
        # The global generator of random numbers is restored afterwards. Only the CPU's is used.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.encoder = ClipResNet(name) if name in CLIP_RESNETS else TimmModel(CLIP_VITS.get(name, name))
        known = self.encoder.layers
        indices = list(range(len(known))) if layers is None else [_find_layer(known, layer, model) for layer in layers]
        self.layers = [known[index] for index in indices]
        self._max_stride = max(layer.stride for layer in self.layers)
        if state is not None:
            state = self.encoder.convert(state)  # before later layers are dropped: timm may need all of them
        self.encoder.choose(indices)
        if state is not None:
            load_part(self.encoder.network, state, prefix="", what=f"the weights of {model}")
        if batch_statistics and not any(isinstance(module, nn.BatchNorm2d) for module in self.modules()):
            deepest = self.layers[indices.index(max(indices))]
            raise UserError(f"batch_statistics needs BatchNorm, and {model} has none up to {deepest.name}")
        self.encoder.eval()
        _check_accepts_any_size(self.encoder, self.layers, model)
        self.register_buffer("mean", torch.tensor(self.encoder.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.encoder.std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Set the mode that `batch_statistics` asks for. `mode` is ignored."""
        return super().train(self.batch_statistics)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) float in [0, 1] -> for each layer (B, channels, h, w).

        An image whose sides are not multiples of the largest stride is first resized to the nearest multiples, at least
        one, so that the maps cover all of it. Then h = H / stride and w = W / stride.
        """
        size = [max(1, round(side / self._max_stride)) * self._max_stride for side in image.shape[-2:]]
        if size != list(image.shape[-2:]):
            image = F.interpolate(image, size, mode="bicubic", antialias=True)
        return self.encoder((image - self.mean) / self.std)


@dataclass(frozen=True)
class Layer:
    """A layer whose output can be used."""

    name: str
    channels: int
    stride: int


class ClipResNet(nn.Module):
    """The image encoder of a CLIP ResNet, as open_clip builds it, with random weights."""

    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD

    def __init__(self, tower: str):
        super().__init__()
        config = open_clip.get_model_config(tower)
        assert config is not None, tower
        vision = config["vision_cfg"]
        self.network = ModifiedResNet(
            layers=vision["layers"],
            output_dim=config["embed_dim"],
            heads=vision["width"] * 32 // 64,  # 64 channels per head, of 32 * width at the end
            image_size=vision["image_size"],
            width=vision["width"],
        )
        self.layers = [Layer(f"layer{i + 1}", vision["width"] * 4 * 2**i, 4 * 2**i) for i in range(4)]
        self.indices = [3]

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the weights in a state dict of the image encoder or of the whole CLIP model to the network's names."""
        return {name.removeprefix(CLIP_PREFIX): value for name, value in state.items()}

    def choose(self, indices: Sequence[int]) -> None:
        """Return the outputs of these layers from now on, and drop all later ones."""
        self.indices = list(indices)
        del self.network.attnpool
        for layer in self.layers[max(indices) + 1 :]:
            delattr(self.network, layer.name)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised image (B, 3, H, W) -> outputs of the chosen layers, each (B, channels, H / stride, W / stride)."""
        x = self.network.stem(x)
        outputs = []
        for layer in self.layers[: max(self.indices) + 1]:
            x = getattr(self.network, layer.name)(x)
            outputs.append(x)
        return [outputs[index] for index in self.indices]


class TimmModel(nn.Module):
    """A timm model with random weights."""

    network: Any  # an nn.Module with attributes and methods of timm's models

    def __init__(self, name: str):
        super().__init__()
        try:  # transformers: interpolate positional embeddings to the image's size
            self.network = timm.create_model(name, dynamic_img_size=True)
        except TypeError:  # other models do not have this argument
            self.network = timm.create_model(name)
        self.layers = [Layer(info["module"], info["num_chs"], info["reduction"]) for info in self.network.feature_info]
        self.indices = [len(self.layers) - 1]
        config = resolve_model_data_config(self.network)
        self.mean, self.std = config["mean"], config["std"]

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename weights to timm's names. timm converts the original weights of many models.

        Raises UserError if timm cannot convert them.
        """
        if "class_embedding" in state:  # CLIP's image encoder alone; timm converts the whole model only
            state = {f"{CLIP_PREFIX}{name}": value for name, value in state.items()}
        model = self.network.pretrained_cfg["architecture"]
        family = sys.modules[timm.model_entrypoint(model).__module__]
        convert = getattr(family, "checkpoint_filter_fn", None)
        if convert is None:
            return state
        try:
            return convert(dict(state), self.network)  # a copy, because some functions remove entries
        except Exception as error:  # weights of another model may raise any exception
            raise UserError(
                f"weights of timm's {model} were expected, but timm cannot convert those given "
                f"({type(error).__name__}: {error})"
            ) from error

    def choose(self, indices: Sequence[int]) -> None:
        """Return the outputs of these layers from now on, and drop all later ones."""
        self.indices = list(indices)
        self.network.prune_intermediate_layers(sorted(set(indices)), prune_norm=True, prune_head=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised image (B, 3, H, W) -> outputs of the chosen layers, each (B, channels, h, w)."""
        by_depth = sorted(set(self.indices))
        outputs = self.network.forward_intermediates(
            x, indices=by_depth, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return [outputs[by_depth.index(index)] for index in self.indices]


def parse_model_name(model: str) -> tuple[str, str]:
    """Split `clip/RN50` or `timm/resnet50` into the source and the model's name there.

    Raises UserError if the source or the model does not exist.
    """
    source, _, name = model.partition("/")
    if source == "clip":
        if name not in CLIP_TOWERS:
            raise UserError(
                f"CLIP has no model {name!r}, but {', '.join(CLIP_TOWERS)}{_did_you_mean(name, CLIP_TOWERS)}"
            )
    elif source == "timm":
        names = {*timm.list_models(), *timm.list_pretrained()}
        if name not in names:
            raise UserError(f"timm {timm.__version__} has no model {name!r}{_did_you_mean(name, names)}")
    else:
        raise UserError(f"the model {model!r} was given, but clip/<model> or timm/<model> was expected")
    return source, name


def _find_layer(layers: list[Layer], wanted: str, model: str) -> int:
    """The index of the layer with this name or stride; of several with this stride, the deepest."""
    found = [i for i, layer in enumerate(layers) if wanted in (layer.name, str(layer.stride))]
    if not found:
        strides = " or ".join(map(str, sorted({layer.stride for layer in layers})))
        names = ", ".join(f"{layer.name} ({layer.stride})" for layer in layers)
        raise UserError(
            f"{model} has no layer {wanted!r}; give a stride, {strides}, or a name, of {names}"
            f"{_did_you_mean(wanted, [layer.name for layer in layers])}"
        )
    return found[-1]


@torch.no_grad()
def _check_accepts_any_size(encoder: nn.Module, layers: Sequence[Layer], model: str) -> None:
    """Fail when the model is built, not in the first training step or on the first large image."""
    rows, columns, stride = 4, 6, max(layer.stride for layer in layers)
    try:
        maps = encoder(torch.zeros(1, 3, rows * stride, columns * stride))
    except Exception as error:  # timm's models raise different exceptions for wrong sizes
        reason = str(error).partition("\n")[0]
    else:
        for layer, features in zip(layers, maps, strict=True):
            finer = stride // layer.stride
            if features.shape != (1, layer.channels, rows * finer, columns * finer):
                found = "x".join(map(str, features.shape[-2:]))
                reason = f"{rows * finer}x{columns * finer} strides become {found} positions"
                break
        else:
            return
    raise UserError(
        f"{model} cannot be used, because it does not make maps of stride {stride} from images "
        f"of any size ({reason}); choose another model or layer"
    )


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(given, sorted(known), n=3)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""
