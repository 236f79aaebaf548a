"""The frozen vision model whose features condition the discriminator: CLIP's RN50 image encoder, up to `layer3`.

Sources: SeD (CVPR 2024, arXiv 2402.19387), section 3; Radford et al., "CLIP", ICML 2021.
"""

import hashlib
import warnings
import zipfile
from pathlib import Path

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from models.pretrained import load_part
from utils import checkpoint
from utils.errors import UserError

CLIP_RN50_SHA256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"  # OpenAI's RN50.pt
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class SemanticExtractor(nn.Module):
    """HR image -> semantic feature map. Nothing in it is ever trained.

    `state` holds the image encoder's weights under OpenAI's names (`conv1.weight`, `layer1.0.bn1.running_mean`, ...),
    with or without the prefix `visual.`; other entries (text encoder, `layer4`, attention pool) are ignored. None gives
    random weights, the same in every process, for runs that only test the machinery.

    The module stays in evaluation mode whatever `train()` is told, so that features depend on their own image alone.
    `batch_statistics=True` keeps it in training mode instead, as the released SeD code did: BatchNorm then normalises
    with the batch's statistics, and its running statistics drift.

    Raises UserError if `state` lacks a weight or holds one of another shape.
    """

    channels = 1024
    stride = 16

    def __init__(self, *, state: dict[str, Tensor] | None, batch_statistics: bool = False):
        super().__init__()
        self.batch_statistics = batch_statistics
        # Random weights are drawn from a generator that is put back afterwards; only the CPU's takes part.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.visual = ModifiedResNet(layers=[3, 4, 6, 3], output_dim=1024, heads=32)
        del self.visual.layer4, self.visual.attnpool
        if state is not None:
            prefix = "visual." if any(name.startswith("visual.") for name in state) else ""
            load_part(self.visual, state, prefix=prefix, what="CLIP RN50 weights")
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "SemanticExtractor":
        """Stays in the mode that `batch_statistics` asks for; `mode` changes nothing."""
        return super().train(self.batch_statistics)

    @torch.no_grad()
    def forward(self, hr: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1], H and W multiples of 16 -> (B, 1024, H/16, W/16)."""
        x = self.visual.stem((hr - self.mean) / self.std)
        return self.visual.layer3(self.visual.layer2(self.visual.layer1(x)))


def load_clip_rn50(path: str | Path, *, sha256: str = CLIP_RN50_SHA256) -> dict[str, Tensor]:
    """The float32 weights in a CLIP RN50 file, under the file's own names.

    The file is OpenAI's TorchScript archive `RN50.pt`, or a state dict as `checkpoint.load` reads it. A TorchScript
    archive, which is code, is opened only if its hash is `sha256`.

    Raises UserError if the file is missing, is none of these, or is an archive with another hash.
    """
    path = Path(path)
    state = _load_torchscript(path, sha256) if _is_torchscript(path) else checkpoint.load(path)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"the CLIP weights {path} are no dict of named tensors, which was expected")
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):  # nor for a path where nothing is
        return False
    with zipfile.ZipFile(path) as archive:
        # Members lie in one folder named after the archive; files of `torch.save` have neither of these.
        members = [name.partition("/")[2] for name in archive.namelist()]
    return any(name == "constants.pkl" or name.startswith("code/") for name in members)


def _load_torchscript(path: Path, sha256: str) -> dict[str, Tensor]:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise UserError(
            f"the TorchScript archive {path} has the sha256 {found}, but OpenAI's RN50.pt has {sha256}: "
            "download it again"
        )
    with warnings.catch_warnings():
        # PyTorch advises against TorchScript for new models; this archive has been what it is since 2021.
        warnings.simplefilter("ignore", FutureWarning)
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
