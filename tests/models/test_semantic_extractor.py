import hashlib
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from models.semantic_extractor import SemanticExtractor, load_clip_rn50
from utils.errors import UserError

# TorchScript is on its way out of PyTorch, but OpenAI's archive is made of it.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")


@pytest.fixture(scope="module")
def state(fill):
    """CLIP's image encoder under OpenAI's names, filled from them."""
    shapes = {name: value.shape for name, value in SemanticExtractor(state=None).visual.state_dict().items()}
    return {
        name: torch.from_numpy(fill.fill(name, shape))
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.fixture(scope="module")
def extractor(state):
    return SemanticExtractor(state=state)


@pytest.fixture
def hr():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_equals_the_reference_output(extractor, fill, reference):
    output = torch.from_numpy(reference("semantic_extractor_rn50")["output"])
    features = extractor(torch.from_numpy(fill.image("image", (1, 3, 64, 64))))
    torch.testing.assert_close(features, output, rtol=0, atol=1e-4 * output.std().item())


def test_features_have_the_promised_channels_and_stride(extractor, hr):
    assert extractor(hr).shape == (2, extractor.channels, 32 // extractor.stride, 48 // extractor.stride)


def test_nothing_in_it_is_trained(extractor, hr):
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    features = extractor.train()(hr.requires_grad_())
    assert not features.requires_grad
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not any(module.training for module in extractor.modules())
    assert all(torch.equal(value, before[name]) for name, value in extractor.state_dict().items())


def test_features_do_not_depend_on_batch_mates(extractor, hr):
    torch.testing.assert_close(extractor.train()(hr)[:1], extractor(hr[:1]), rtol=1e-4, atol=1e-4)


def test_batch_statistics_restore_the_released_behaviour(state, hr):
    extractor = SemanticExtractor(state=state, batch_statistics=True)
    before = extractor.visual.bn1.running_mean.clone()
    together = extractor.eval()(hr)  # not even eval() leaves the mode of the released code
    assert not together.requires_grad
    assert not torch.allclose(together[:1], extractor(hr[:1]), rtol=1e-2, atol=1e-2)
    assert not torch.equal(extractor.visual.bn1.running_mean, before)


def test_random_weights_are_the_same_everywhere_and_leave_the_generator_alone():
    torch.manual_seed(1)
    first = SemanticExtractor(state=None).state_dict()
    drawn = torch.rand(4)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(4), drawn)
    second = SemanticExtractor(state=None).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_entries_of_the_whole_clip_model_are_ignored(state, extractor, hr):
    whole = {f"visual.{name}": value for name, value in state.items()}
    whole["visual.layer4.0.conv1.weight"] = whole["transformer.resblocks.0.ln_1.weight"] = torch.zeros(1)
    assert torch.equal(SemanticExtractor(state=whole)(hr), extractor(hr))


def test_missing_and_misshapen_weights_are_named(state):
    with pytest.raises(UserError, match=r"`layer1\.0\.conv1\.weight` of shape .* lack it"):
        SemanticExtractor(state={name: value for name, value in state.items() if not name.startswith("layer")})
    with pytest.raises(UserError, match=r"`visual\.conv1\.weight` of shape \(32, 3, 3, 3\).*\(64, 3, 7, 7\)"):
        SemanticExtractor(state={"visual.conv1.weight": torch.zeros(64, 3, 7, 7)})


class Clip(nn.Module):
    """What `RN50.pt` looks like from outside: a scripted model whose image encoder is called `visual`."""

    def __init__(self, visual):
        super().__init__()
        self.visual = visual

    def forward(self, image):
        return self.visual.layer3(self.visual.layer2(self.visual.layer1(self.visual.stem(image))))


@pytest.fixture
def archive(extractor, tmp_path):
    path = tmp_path / "RN50.pt"
    torch.jit.trace(Clip(extractor.visual), torch.rand(1, 3, 32, 32)).save(path)
    return path


def test_torchscript_archive_with_the_right_hash_is_read(archive, extractor, hr):
    state = load_clip_rn50(archive, sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    assert torch.equal(SemanticExtractor(state=state)(hr), extractor(hr))


def test_torchscript_archive_with_another_hash_is_refused_unopened(archive, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", None)
    with pytest.raises(UserError, match=hashlib.sha256(archive.read_bytes()).hexdigest()):
        load_clip_rn50(archive)


@pytest.mark.parametrize(
    ("name", "save"),
    [("rn50.pt", torch.save), ("rn50.pth", torch.save), ("rn50.safetensors", safetensors.torch.save_file)],
)
def test_half_precision_state_dicts_are_read_as_float32(name, save, state, tmp_path):
    half = {name: value.half() for name, value in state.items()}
    save(half, tmp_path / name)
    loaded = load_clip_rn50(tmp_path / name)
    assert loaded.keys() == half.keys()
    assert all(
        value.dtype == torch.float32 and torch.equal(value, half[name].float()) for name, value in loaded.items()
    )


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
def test_wrong_files_get_one_sentence_and_run_no_code(write, name, tmp_path, capfd):
    write(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} .*(expected|not loaded|damaged)|CLIP weights .*{name}") as caught:
        load_clip_rn50(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "must not be printed" not in capfd.readouterr().out
