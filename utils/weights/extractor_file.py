"""Weight files of the pretrained networks that training uses: the semantic extractor, the perceptual loss."""

import warnings
import zipfile
from pathlib import Path

import open_clip
import timm
import torch
from torch import Tensor

from sed_sr.models.backbones import CLIP_PREFIX, parse_model_name
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.catalogue import PUBLISHED
from sed_sr.utils.weights.formats import unwrap
from sed_sr.utils.weights.pretrained import locate, sha256_of, verify

RANDOM = "random"  # given in place of a weight file
TORCHVISION = {"vgg19": "vgg19-dcbb9e9d.pth"}  # models of the perceptual loss that are torchvision's


def published_weights(model: str) -> str:
    """The name of the file with a model's published weights, as `python -m utils.weights` lists it.

    Raises:
        UserError: there is no such model, or its weights cannot be downloaded.
    """
    source, name = parse_model_name(model)
    if source == "clip":
        return open_clip.get_pretrained_url(name, "openai").rpartition("/")[2]
    config = timm.get_pretrained_cfg(name)
    hub_id = config.hf_hub_id if config is not None else None
    owner, _, repository = (hub_id or "").partition("/")
    if owner != "timm":
        raise UserError(
            f"no weights of {model} can be downloaded: give a file, or choose a model of timm.list_pretrained()"
        )
    return f"{repository}.safetensors"


def load_extractor_state(model: str, weights: str | None, *, pretrained_root: Path) -> dict[str, Tensor] | None:
    """The weights of a semantic extractor from a file, which is downloaded first if necessary; None for random weights.

    Args:
        model: as of `SemanticExtractor`.
        weights: a file, as of `locate`, or "random"; None: the published weights.

    Raises:
        UserError: the file is missing, or is not one that `read_extractor_file` reads.
    """
    if weights == RANDOM:
        return None
    source = published_weights(model) if weights is None else weights
    return read_extractor_file(locate(source, pretrained_root=pretrained_root), model)


def published_perceptual_weights(model: str) -> str:
    """`published_weights` of a model of `PerceptualLoss`."""
    return TORCHVISION[model] if model in TORCHVISION else published_weights(model)


def load_perceptual_state(model: str, weights: str | None, *, pretrained_root: Path) -> dict[str, Tensor] | None:
    """`load_extractor_state` for a model of `PerceptualLoss`."""
    if model not in TORCHVISION or weights == RANDOM:
        return load_extractor_state(model, weights, pretrained_root=pretrained_root)
    path = locate(TORCHVISION[model] if weights is None else weights, pretrained_root=pretrained_root)
    return checkpoint.load(path, verified=verify(path))


def read_extractor_file(path: str | Path, model: str) -> dict[str, Tensor]:
    """Read weights in float32, under the file's own names, for `SemanticExtractor(model=model, state=...)`.

    The file holds a state dict, bare or as an entry `state_dict` or `model`; names may have the prefixes of
    DistributedDataParallel and torch.compile. For a CLIP model it may be OpenAI's TorchScript archive. Such an archive
    contains code, so it is opened only if its SHA-256 is the published one.

    Raises:
        UserError: the file is missing, holds none of these, or is an archive with another SHA-256.
    """
    path = Path(path)
    source, _ = parse_model_name(model)
    if source == "clip" and _is_torchscript(path):
        state = _load_torchscript(path, published_weights(model))
    else:
        state = checkpoint.load(path)
        for entry in ("state_dict", "model"):
            if isinstance(state.get(entry), dict):
                state = state[entry]
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise UserError(f"the weights of {model} in {path} were expected to be a dict of named tensors, and are not")
    state, _ = unwrap(state, path, markers=[{f"{CLIP_PREFIX}conv1.weight"}])
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):  # False as well if there is no file
        return False
    with zipfile.ZipFile(path) as archive:
        # Members are in one folder named after the archive. Files of `torch.save` have neither of these members.
        members = [name.partition("/")[2] for name in archive.namelist()]
    return any(name == "constants.pkl" or name.startswith("code/") for name in members)


def _load_torchscript(path: Path, name: str) -> dict[str, Tensor]:
    """The state dict of OpenAI's archive `name` at `path`. Raises UserError if its SHA-256 is not the published one."""
    found, expected = sha256_of(path), PUBLISHED[name].sha256
    if found != expected:
        raise UserError(
            f"the TorchScript archive {path} has the sha256 {found}, but OpenAI's {name} has {expected}: "
            "download it again"
        )
    with warnings.catch_warnings():
        # PyTorch deprecates TorchScript; OpenAI publishes no other format.
        warnings.simplefilter("ignore", FutureWarning)
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
