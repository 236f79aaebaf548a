"""Agreement with pyiqa, which many recent papers use, and messages if a metric of pyiqa fails."""

import logging
import socket
import sys
import warnings
from types import SimpleNamespace

import lpips
import numpy as np
import pyiqa
import pytest
import skimage.data
import torch
import torchvision
from PIL import Image
from pyiqa.archs.lpips_arch import LPIPS as PyiqaLPIPS
from pyiqa.archs.ssim_arch import ssim as pyiqa_ssim
from pyiqa.utils.color_util import to_y_channel

from sed_sr.models.precision import without_tf32
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.metrics import psnr_y, ssim_y
from sed_sr.utils.evaluation.pyiqa_metrics import PyiqaMetric

CPU = torch.device("cpu")
PROTOCOL = {"test_y_channel": True, "crop_border": 4, "color_space": "ycbcr"}
PYIQA_EPSILON = 1e-8  # that its PSNR adds to the mean squared error of images in [0, 1]


def photographs():
    """Photographs and their bicubic x4 upscalings, (3, H, W) uint8."""
    pairs = []
    for photo in (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()):
        hr = photo[:256, 100:360]
        small = Image.fromarray(hr).resize((65, 64), Image.Resampling.BICUBIC)
        sr = np.array(small.resize((260, 256), Image.Resampling.BICUBIC))
        pairs.append([torch.from_numpy(image.copy()).permute(2, 0, 1) for image in (sr, hr)])
    return pairs


def in_unit_range(*images):
    return (image[None].double() / 255 for image in images)


@pytest.mark.parametrize(("sr", "hr"), photographs())
def test_psnr_equals_pyiqas_except_for_its_epsilon(sr, hr):
    theirs = pyiqa.create_metric("psnr", device=CPU, **PROTOCOL)(*in_unit_range(sr, hr)).item()
    ours = psnr_y(sr, hr)
    assert theirs == pytest.approx(ours, abs=1e-4)
    with_epsilon = -10 * np.log10(10 ** (-ours / 10) + PYIQA_EPSILON)
    assert theirs == pytest.approx(with_epsilon, abs=2e-6)


@pytest.mark.parametrize(("sr", "hr"), photographs())
def test_ssim_equals_pyiqas_except_for_its_rounding_of_luma_and_its_clipping(sr, hr, monkeypatch):
    theirs = pyiqa.create_metric("ssim", device=CPU, **PROTOCOL)(*in_unit_range(sr, hr)).item()
    assert ssim_y(sr, hr) == pytest.approx(theirs, abs=2e-3)
    monkeypatch.setattr("torch.nn.functional.relu", lambda structure: structure)  # it clips negative ones to 0
    luma = (255 * to_y_channel(image, 1, "ycbcr")[..., 4:-4, 4:-4] for image in in_unit_range(sr, hr))
    assert ssim_y(sr, hr) == pytest.approx(pyiqa_ssim(*luma, data_range=255).item(), abs=1e-6)


@pytest.mark.parametrize(("network", "classifier"), [("alex", "alexnet"), ("vgg", "vgg16")])
def test_lpips_of_pyiqa_equals_the_lpips_package(network, classifier, monkeypatch):
    vgg = torchvision.models.vgg
    features = torchvision.models.alexnet().features if network == "alex" else vgg.make_layers(vgg.cfgs["D"])
    monkeypatch.setattr(torchvision.models, classifier, lambda **_: SimpleNamespace(features=features))
    ours = lpips.LPIPS(net=network, verbose=False)
    theirs = PyiqaLPIPS(net=network, pretrained=False)  # whose linear layers would be downloaded
    theirs.load_state_dict(ours.state_dict())
    sr, hr = photographs()[0]
    sr, hr = (image[None].float() / 255 for image in (sr, hr))
    with torch.inference_mode():
        assert theirs(sr, hr).item() == pytest.approx(ours(2 * sr - 1, 2 * hr - 1).item(), rel=1e-5)


def test_metric_equals_pyiqas_on_rgb_in_unit_range():
    sr, hr = photographs()[0]
    expected = pyiqa.create_metric("gmsd", device=CPU)(sr[None] / 255, hr[None] / 255).item()
    metric = PyiqaMetric("gmsd", device=CPU, built_in=())
    assert metric(sr, hr) == pytest.approx(expected, rel=1e-6)
    assert (metric.lower_is_better, metric.needs_ground_truth) == (True, True)


def test_no_reference_metric_uses_the_image_only():
    sr, _ = photographs()[0]
    metric = PyiqaMetric("piqe", device=CPU, built_in=())
    assert (metric.lower_is_better, metric.needs_ground_truth) == (True, False)
    assert metric(sr, None) == pytest.approx(pyiqa.create_metric("piqe", device=CPU)(sr[None] / 255).item(), rel=1e-6)


def test_network_uses_tf32_only_if_the_caller_does(tf32_allowed):
    """pyiqa's own call would turn cuDNN's TF32 on for all threads."""
    sr, hr = photographs()[0]
    metric, seen = PyiqaMetric("gmsd", device=CPU, built_in=()), []
    *_, innermost = metric._network.modules()
    innermost.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    with without_tf32():
        metric(sr, hr)
    assert seen == [False]


def test_loading_prints_nothing(capfd, caplog, recwarn, monkeypatch):
    def create_metric(name, device, create=pyiqa.create_metric):
        print("Loading pretrained model")
        logging.getLogger("huggingface_hub").warning("Retrying in 8s")
        warnings.warn("The parameter 'pretrained' is deprecated", stacklevel=1)
        return create(name, device=device)

    monkeypatch.setattr(pyiqa, "create_metric", create_metric)
    PyiqaMetric("vif", device=CPU, built_in=())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not recwarn.list
    logging.getLogger("huggingface_hub").warning("but later it can be heard again")
    assert caplog.records


def test_message_for_missing_pyiqa_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(UserError, match=r"dists is not a built-in metric \(psnr, ssim\), .*pip install pyiqa") as told:
        PyiqaMetric("dists", device=CPU, built_in=("psnr", "ssim"))
    assert "did you mean" not in str(told.value)
    with pytest.raises(UserError, match=r"did you mean psnr\?"):
        PyiqaMetric("PSRN", device=CPU, built_in=("psnr", "ssim"))


@pytest.mark.parametrize(("name", "nearest"), [("muzik", "musiq"), ("psnr-y", "psnry"), ("[/red]", None)])
def test_unknown_metric_has_a_suggestion(name, nearest):
    with pytest.raises(UserError, match="there is no metric") as told:
        PyiqaMetric(name, device=CPU, built_in=("psnr", "ssim"))
    assert (f"did you mean {nearest}" in str(told.value)) == (nearest is not None)


def test_weights_that_cannot_be_downloaded_are_one_sentence(monkeypatch, tmp_path, capfd):
    def create_connection(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"weights of niqe could not be downloaded .*unreachable") as told:
        PyiqaMetric("niqe", device=CPU, built_in=())
    assert "\n" not in str(told.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'clip'"), KeyError("No object named 'X'")])
def test_message_for_a_missing_dependency_says_how_to_install_it(error, monkeypatch):
    def create_metric(name, device):
        raise error

    monkeypatch.setattr(pyiqa, "create_metric", create_metric)
    with pytest.raises(UserError, match=r"could not build clipiqa .*pip install pyiqa"):
        PyiqaMetric("clipiqa", device=CPU, built_in=())


def test_image_too_small_for_a_metric_is_one_sentence():
    metric = PyiqaMetric("vif", device=CPU, built_in=())
    small = torch.zeros(3, 4, 5, dtype=torch.uint8)
    with pytest.raises(UserError, match="vif of pyiqa cannot score an image of 5x4 px"):
        metric(small, small)


def test_out_of_memory_error_is_passed_on(monkeypatch):
    metric = PyiqaMetric("gmsd", device=CPU, built_in=())

    def hungry(*images):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(metric, "_network", hungry)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(torch.OutOfMemoryError):
        metric(image, image)


def test_too_little_memory_for_a_metric_is_reported_when_it_is_built(monkeypatch):
    def hungry(image):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    metric = SimpleNamespace(net=hungry, lower_better=True, metric_mode="NR")
    monkeypatch.setattr(pyiqa, "create_metric", lambda name, device: metric)
    with pytest.raises(UserError, match="cpu has too little memory for qalign"):
        PyiqaMetric("qalign", device=CPU, built_in=())


def test_metric_that_does_not_score_single_images_is_refused_when_it_is_built(monkeypatch):
    def of_sets(image):
        raise ValueError("a folder is needed")

    metric = SimpleNamespace(net=of_sets, lower_better=True, metric_mode="NR")
    monkeypatch.setattr(pyiqa, "create_metric", lambda name, device: metric)
    with pytest.raises(UserError, match=r"fid of pyiqa cannot score .*a folder is needed"):
        PyiqaMetric("fid", device=CPU, built_in=())
