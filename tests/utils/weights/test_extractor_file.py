"""Weight files of semantic extractors: formats, wrappers, OpenAI's archives, published files, errors."""

import dataclasses
import hashlib
import pickle

import open_clip
import pytest
import safetensors.torch
import torch
from torch import nn

from sed_sr.models.backbones import CLIP_TOWERS
from sed_sr.models.semantic_extractor import SemanticExtractor
from sed_sr.options.errors import UserError
from sed_sr.utils.weights.catalogue import PUBLISHED
from sed_sr.utils.weights.extractor_file import (
    load_extractor_state,
    load_perceptual_state,
    published_perceptual_weights,
    published_weights,
    read_extractor_file,
)
from sed_sr.utils.weights.pretrained import locate

# PyTorch deprecates TorchScript; OpenAI's archives use it.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")


@pytest.fixture(scope="module")
def state():
    """CLIP RN50's image encoder with weights that differ from the random ones that a new extractor has."""
    weights = SemanticExtractor().backbone.encoder.network.state_dict()
    return {name: value + 0.01 for name, value in weights.items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def extractor(state):
    return SemanticExtractor(state=state)


class Clip(nn.Module):
    """A stand-in for `RN50.pt`: a scripted model whose image encoder is called `visual`."""

    def __init__(self, visual):
        super().__init__()
        self.visual = visual

    def forward(self, image):
        return self.visual.layer3(self.visual.layer2(self.visual.layer1(self.visual.stem(image))))


@pytest.fixture
def archive(extractor, tmp_path):
    path = tmp_path / "RN50.pt"
    torch.jit.trace(Clip(extractor.backbone.encoder.network), torch.rand(1, 3, 32, 32)).save(path)
    return path


def test_torchscript_archive_with_the_published_sha256_is_read(archive, extractor, monkeypatch):
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, "RN50.pt", dataclasses.replace(PUBLISHED["RN50.pt"], sha256=sha256))
    state = read_extractor_file(archive, "clip/RN50")
    hr = torch.rand(2, 3, 32, 48)
    assert torch.equal(SemanticExtractor(state=state)(hr), extractor(hr))


def test_torchscript_archive_with_another_sha256_is_not_opened(archive, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", None)
    with pytest.raises(UserError, match=hashlib.sha256(archive.read_bytes()).hexdigest()):
        read_extractor_file(archive, "clip/RN50")
    with pytest.raises(UserError, match="is a TorchScript program"):
        read_extractor_file(archive, "timm/resnet50")


@pytest.mark.parametrize(
    ("name", "save"),
    [("rn50.pt", torch.save), ("rn50.pth", torch.save), ("rn50.safetensors", safetensors.torch.save_file)],
)
def test_half_precision_state_dicts_are_read_as_float32(name, save, state, tmp_path):
    half = {name: value.half() for name, value in state.items()}
    save(half, tmp_path / name)
    loaded = read_extractor_file(tmp_path / name, "clip/RN50")
    assert loaded.keys() == half.keys()
    assert all(
        value.dtype == torch.float32 and torch.equal(value, half[name].float()) for name, value in loaded.items()
    )


@pytest.mark.parametrize("entry", ["state_dict", "model"])
def test_state_dict_in_an_entry_is_read(entry, tmp_path):
    weights = {"conv1.weight": torch.rand(2), "bn1.num_batches_tracked": torch.tensor(3)}
    torch.save({entry: weights, "epoch": 90}, tmp_path / "resnet.pth")
    loaded = read_extractor_file(tmp_path / "resnet.pth", "timm/resnet18")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_prefixes_of_wrapped_models_are_removed(state, tmp_path, wrapper):
    whole = {f"visual.{name}": value for name, value in state.items()}
    torch.save({"state_dict": {wrapper + name: value for name, value in whole.items()}}, tmp_path / "rn50.pth")
    loaded = read_extractor_file(tmp_path / "rn50.pth", "clip/RN50")
    assert loaded.keys() == whole.keys()


class RunsCode:
    def __reduce__(self):
        return print, ("this must not be printed",)


@pytest.mark.parametrize("name", ["rn50.pt", "rn50.safetensors"])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<html>404 Not Found</html>"),
        lambda path: path.write_bytes(pickle.dumps({"conv1.weight": RunsCode()}, protocol=2)),
        lambda path: torch.save({"conv1.weight": RunsCode()}, path),
        lambda path: torch.save(torch.zeros(3), path),
        lambda path: torch.save({"epoch": 3}, path),
    ],
    ids=["missing", "empty", "html", "pickle", "zipped pickle", "tensor", "no tensors"],
)
def test_invalid_file_raises_one_line_and_runs_no_code(write, name, tmp_path, capfd):
    write(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} .*(expected|not loaded|damaged)|clip/RN50 in .*{name}") as caught:
        read_extractor_file(tmp_path / name, "clip/RN50")
    assert "\n" not in str(caught.value)
    assert "must not be printed" not in capfd.readouterr().out


def test_weights_come_from_the_given_file_the_published_file_or_are_random(tmp_path, monkeypatch):
    monkeypatch.setenv("SED_OFFLINE", "1")
    assert load_extractor_state("clip/RN50", "random", pretrained_root=tmp_path) is None
    assert load_perceptual_state("vgg19", "random", pretrained_root=tmp_path) is None
    assert load_perceptual_state("timm/resnet18", "random", pretrained_root=tmp_path) is None
    torch.save({"conv1.weight": torch.ones(3)}, tmp_path / "mine.pth")
    for state in (
        load_extractor_state("timm/resnet18", "mine.pth", pretrained_root=tmp_path),
        load_perceptual_state("vgg19", "mine.pth", pretrained_root=tmp_path),
        load_perceptual_state("timm/resnet18", "mine.pth", pretrained_root=tmp_path),
    ):
        assert torch.equal(state["conv1.weight"], torch.ones(3))
    with pytest.raises(UserError, match=r"RN50\.pt"):
        load_extractor_state("clip/RN50", None, pretrained_root=tmp_path)
    for model, name in (("vgg19", "vgg19-dcbb9e9d.pth"), ("timm/vgg19.tv_in1k", "vgg19.tv_in1k.safetensors")):
        assert published_perceptual_weights(model) == name
        with pytest.raises(UserError, match=name):
            load_perceptual_state(model, None, pretrained_root=tmp_path)


@pytest.mark.parametrize("model", ["RN50", "clip/ViT-B/32", "timm/resnet50.tv_in1"])
def test_unknown_model_raises(model, tmp_path):
    for ask in (lambda: published_weights(model), lambda: read_extractor_file(tmp_path, model)):
        with pytest.raises(UserError, match=model.rpartition("/")[2]):
            ask()


@pytest.mark.parametrize("tower", CLIP_TOWERS)
def test_sha256_of_clip_archives_is_the_one_that_openai_published(tower):
    url = open_clip.get_pretrained_url(tower, "openai")
    file = PUBLISHED[published_weights(f"clip/{tower}")]
    assert file.url == url
    assert url.split("/")[-2:] == [file.sha256, file.name]


def test_published_weights_of_timm_models_can_be_located(tmp_path, monkeypatch):
    monkeypatch.setenv("SED_OFFLINE", "1")
    for model, name in {
        "resnet50.tv_in1k": "resnet50.tv_in1k",
        "resnet18": "resnet18.a1_in1k",  # timm's default weights
        "vit_base_patch16_clip_quickgelu_224.openai": "vit_base_patch16_clip_224.openai",  # shared weights
    }.items():
        file = published_weights(f"timm/{model}")
        assert file == f"{name}.safetensors"
        with pytest.raises(UserError, match=f"huggingface.co/timm/{name}/resolve/main/model.safetensors"):
            locate(file, pretrained_root=tmp_path)
    with pytest.raises(UserError, match="no weights of timm/botnet50ts_256 can be downloaded"):
        published_weights("timm/botnet50ts_256")
