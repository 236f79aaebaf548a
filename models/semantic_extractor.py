"""The frozen vision model whose features condition the discriminator.

By default CLIP's RN50 image encoder up to `layer3`, as in the paper; else another tower of OpenAI's CLIP, or any model
of timm that makes maps of images of any size.

Sources: SeD (CVPR 2024, arXiv 2402.19387), section 3; Radford et al., "CLIP", ICML 2021; Wightman, timm.
"""

import difflib
import sys
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional as F

from sed_sr.models.partial_load import load_part
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.catalogue import PUBLISHED
from sed_sr.utils.weights.formats import unwrap
from sed_sr.utils.weights.pretrained import sha256_of

CLIP_RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
# CLIP's ViTs come from timm, whose positional embeddings follow the image's size; OpenAI trained with QuickGELU.
CLIP_VITS = {
    "ViT-B-32": "vit_base_patch32_clip_quickgelu_224.openai",
    "ViT-B-16": "vit_base_patch16_clip_quickgelu_224.openai",
    "ViT-L-14": "vit_large_patch14_clip_quickgelu_224.openai",
    "ViT-L-14-336": "vit_large_patch14_clip_quickgelu_336.openai",
}
CLIP_TOWERS = (*CLIP_RESNETS, *CLIP_VITS)
CLIP_PREFIX = "visual."  # of the image encoder in the whole CLIP model


class SemanticExtractor(nn.Module):
    """HR image -> semantic feature map. Nothing in it is ever trained.

    The module stays in evaluation mode whatever `train()` is told, so that features depend on their own image alone.

    Attributes:
        channels: of the map.
        stride: pixels of the image, in each direction, to one position of the map.
    """

    def __init__(
        self,
        *,
        model: str = "clip/RN50",
        layer: str = "16",
        state: dict[str, Tensor] | None = None,
        batch_statistics: bool = False,
    ):
        """Build the model up to a layer; what lies behind it is not kept.

        Args:
            model: `clip/<tower>` as open_clip calls OpenAI's towers, or `timm/<model>`.
            layer: whose output is taken, before any norm that follows it: its name in the model, or a stride in
                digits, which stands for the deepest layer of that stride.
            state: the model's weights as `load_extractor_weights` gives them; what is not needed is ignored. None
                gives random weights, the same in every process, for runs that only test the machinery.
            batch_statistics: stay in training mode instead, as the released SeD code did: BatchNorm normalises with
                the batch's statistics, and its running statistics drift.

        Raises:
            UserError: there is no such model or layer; the model wants images of one size; `state` lacks a weight or
                holds one of another shape; `batch_statistics` where there is no BatchNorm.
        """
        super().__init__()
        self.batch_statistics = batch_statistics
        _, name = _source_and_name(model)
        # Random weights are drawn from a generator that is put back afterwards; only the CPU's takes part.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.encoder = ClipResNet(name) if name in CLIP_RESNETS else TimmModel(CLIP_VITS.get(name, name))
        index = _index(self.encoder.layers, layer, model)
        chosen = self.encoder.layers[index]
        self.channels, self.stride = chosen.channels, chosen.stride
        if state is not None:
            state = self.encoder.renamed(state)  # which for some models takes all of them
        self.encoder.cut_behind(index)
        if state is not None:
            load_part(self.encoder.network, state, prefix="", what=f"the weights of {model}")
        if batch_statistics and not any(isinstance(module, nn.BatchNorm2d) for module in self.modules()):
            raise UserError(f"batch_statistics needs BatchNorm, and {model} has none up to {chosen.name}")
        self.encoder.eval()
        _refuse_unless_any_size(self.encoder, chosen, model)
        self.register_buffer("mean", torch.tensor(self.encoder.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.encoder.std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "SemanticExtractor":
        """Stays in the mode that `batch_statistics` asks for; `mode` changes nothing."""
        return super().train(self.batch_statistics)

    @torch.no_grad()
    def forward(self, hr: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, channels, h, w), where h = max(1, round(H / stride)), and so w.

        An image whose sides are no multiples of the stride is resampled to the nearest that are, so that the map
        covers the whole of it.
        """
        size = [max(1, round(side / self.stride)) * self.stride for side in hr.shape[-2:]]
        if size != list(hr.shape[-2:]):
            hr = F.interpolate(hr, size, mode="bicubic", antialias=True)
        return self.encoder((hr - self.mean) / self.std)


@dataclass(frozen=True)
class Layer:
    """A layer whose output can be taken."""

    name: str
    channels: int
    stride: int


class ClipResNet(nn.Module):
    """The image encoder of one of CLIP's ResNets, as open_clip builds it."""

    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD

    def __init__(self, tower: str):
        super().__init__()
        config = open_clip.get_model_config(tower)
        vision = config["vision_cfg"]
        self.network = ModifiedResNet(
            layers=vision["layers"],
            output_dim=config["embed_dim"],
            heads=vision["width"] * 32 // 64,  # channels at the end, 64 to a head
            image_size=vision["image_size"],
            width=vision["width"],
        )
        self.layers = [Layer(f"layer{i + 1}", vision["width"] * 4 * 2**i, 4 * 2**i) for i in range(4)]

    def renamed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights under the network's names."""
        return {name.removeprefix(CLIP_PREFIX): value for name, value in state.items()}

    def cut_behind(self, index: int) -> None:
        """Let the output be that of a layer, and drop what lies behind it."""
        del self.network.attnpool
        for layer in self.layers[index + 1 :]:
            delattr(self.network, layer.name)
        self.layers = self.layers[: index + 1]

    def forward(self, x: Tensor) -> Tensor:
        """Normalised image -> the layer's output."""
        x = self.network.stem(x)
        for layer in self.layers:
            x = getattr(self.network, layer.name)(x)
        return x


class TimmModel(nn.Module):
    """A model of timm, with random weights."""

    def __init__(self, name: str):
        super().__init__()
        try:  # with positional embeddings that are interpolated to the image's size
            self.network = timm.create_model(name, dynamic_img_size=True)
        except TypeError:  # it knows no such argument, having none
            self.network = timm.create_model(name)
        self.layers = [Layer(info["module"], info["num_chs"], info["reduction"]) for info in self.network.feature_info]
        self.index = len(self.layers) - 1
        config = timm.data.resolve_model_data_config(self.network)
        self.mean, self.std = config["mean"], config["std"]

    def renamed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights under timm's names: those of a model's authors are converted, where timm knows how to.

        Raises UserError where timm cannot.
        """
        if "class_embedding" in state:  # of CLIP's image encoder alone; timm knows the whole model
            state = {f"{CLIP_PREFIX}{name}": value for name, value in state.items()}
        model = self.network.pretrained_cfg["architecture"]
        family = sys.modules[timm.model_entrypoint(model).__module__]
        convert = getattr(family, "checkpoint_filter_fn", None)
        if convert is None:
            return state
        try:
            return convert(dict(state), self.network)  # some take entries out of what they are given
        except Exception as error:  # weights of another model raise nearly anything
            raise UserError(
                f"weights of timm's {model} were expected, and timm does not understand those given "
                f"({type(error).__name__}: {error})"
            ) from error

    def cut_behind(self, index: int) -> None:
        """Let the output be that of a layer, and drop what lies behind it."""
        self.network.prune_intermediate_layers([index], prune_norm=True, prune_head=True)
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """Normalised image -> the layer's output."""
        (features,) = self.network.forward_intermediates(
            x, indices=[self.index], stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return features


def published_weights(model: str) -> str:
    """The file with a model's published weights, by the name that `utils.weights` gives it.

    Raises UserError if there is no such model, or nobody publishes weights of it that could be fetched.
    """
    source, name = _source_and_name(model)
    if source == "clip":
        return open_clip.get_pretrained_url(name, "openai").rpartition("/")[2]
    config = timm.get_pretrained_cfg(name)
    owner, _, repository = (config.hf_hub_id or "").partition("/")
    if owner != "timm":
        raise UserError(f"no weights of {model} can be fetched: give a file, or take a model of timm.list_pretrained()")
    return f"{repository}.safetensors"


def load_extractor_weights(path: str | Path, model: str) -> dict[str, Tensor]:
    """The float32 weights in a file, under the file's own names, for `SemanticExtractor(model=model, state=...)`.

    The file is a state dict as `checkpoint.load` reads it, bare or as an entry `state_dict` or `model`, also one of a
    wrapped module (DistributedDataParallel, torch.compile); or, for a tower of CLIP, OpenAI's TorchScript archive. That
    is code, and is opened only if it is OpenAI's to the byte.

    Raises UserError if the file is missing, is none of these, or is an archive with another hash.
    """
    path = Path(path)
    source, _ = _source_and_name(model)
    if source == "clip" and _is_torchscript(path):
        state = _load_torchscript(path, published_weights(model))
    else:
        state = checkpoint.load(path)
        for entry in ("state_dict", "model"):
            if isinstance(state.get(entry), dict):
                state = state[entry]
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise UserError(f"the weights of {model} in {path} are no dict of named tensors, which was expected")
    state, _ = unwrap(state, path, markers=[{f"{CLIP_PREFIX}conv1.weight"}])
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _source_and_name(model: str) -> tuple[str, str]:
    source, _, name = model.partition("/")
    if source == "clip":
        if name not in CLIP_TOWERS:
            raise UserError(
                f"CLIP has no tower {name!r}, but {', '.join(CLIP_TOWERS)}{_did_you_mean(name, CLIP_TOWERS)}"
            )
    elif source == "timm":
        names = {*timm.list_models(), *timm.list_pretrained()}
        if name not in names:
            raise UserError(f"timm {timm.__version__} has no model {name!r}{_did_you_mean(name, names)}")
    else:
        raise UserError(f"the semantic extractor {model!r} should be clip/<tower of CLIP> or timm/<model of timm>")
    return source, name


def _index(layers: list[Layer], wanted: str, model: str) -> int:
    """Of the layer with that name or, in digits, stride; the deepest of several."""
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
def _refuse_unless_any_size(encoder: nn.Module, layer: Layer, model: str) -> None:
    """Tell now what would end a training step, or the first map of a larger image."""
    rows, columns = 4, 6
    try:
        shape = tuple(encoder(torch.zeros(1, 3, rows * layer.stride, columns * layer.stride)).shape)
    except Exception as error:  # assertions, sizes that do not fit: each model of timm says so in its own way
        reason = str(error).partition("\n")[0]
    else:
        if shape == (1, layer.channels, rows, columns):
            return
        reason = f"{rows}x{columns} strides become {shape[-2]}x{shape[-1]} positions"
    raise UserError(
        f"{model} does not make maps of stride {layer.stride} of images of any size, which a semantic extractor has "
        f"to ({reason}); take another model or layer"
    )


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(given, sorted(known), n=3)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):  # nor for a path where nothing is
        return False
    with zipfile.ZipFile(path) as archive:
        # Members lie in one folder named after the archive; files of `torch.save` have neither of these.
        members = [name.partition("/")[2] for name in archive.namelist()]
    return any(name == "constants.pkl" or name.startswith("code/") for name in members)


def _load_torchscript(path: Path, name: str) -> dict[str, Tensor]:
    """`name`: of OpenAI's file."""
    found, expected = sha256_of(path), PUBLISHED[name].sha256
    if found != expected:
        raise UserError(
            f"the TorchScript archive {path} has the sha256 {found}, but OpenAI's {name} has {expected}: "
            "download it again"
        )
    with warnings.catch_warnings():
        # PyTorch advises against TorchScript for new models; these archives have been what they are since 2021.
        warnings.simplefilter("ignore", FutureWarning)
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
