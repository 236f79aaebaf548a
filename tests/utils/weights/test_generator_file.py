"""Generator weight files: metadata, its validation, and the generator built from it."""

import sys

import pytest
import spandrel
import torch
from spandrel.architectures.SCUNet import SCUNet

from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.memory import peak_bytes
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.generator_file import load_generator, open_generator_file
from tests.spandrel_networks import NETWORKS

RRDB = {"type": "rrdb", "features": 4, "blocks": 2, "growth": 8}
OPTIONS = {"name": "run_a", "generator": RRDB, "test": {"paper_row": "RRDB+P+SeD"}, "losses": {"gan": None}}
SCORES = {"Set5": {"psnr": 30.125, "ssim": 0.85}, "Set14": {"psnr": 26.5, "ssim": 0.7}}
ABOUT = {"options": OPTIONS, "step": 300_000, "scale": 4, "scores": SCORES, "scored_step": 299_000}


@pytest.fixture
def write(tmp_path):
    """Writes a file with the weights of a small RRDB and this metadata."""

    def write_(**changes):
        state = RRDBNet(features=4, blocks=2, growth=8).state_dict()
        torch.save({"params": state, **ABOUT, **changes}, tmp_path / "net.pth")
        return tmp_path / "net.pth"

    return write_


def image_of(network):
    with torch.inference_mode():
        return network.eval()(torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0)))


def test_file_of_this_project_states_network_run_step_and_scores(tmp_path):
    params, params_ema = (RRDBNet(features=4, blocks=2, growth=8) for _ in range(2))
    states = {"params": params.state_dict(), "params_ema": params_ema.state_dict()}
    checkpoint.save_generator(tmp_path / "net.pth", **states, **ABOUT)
    file = open_generator_file(tmp_path / "net.pth")
    assert file.generator_options == RRDB
    assert (file.name, file.step, file.scale, file.paper_row) == ("run_a", 300_000, 4, "RRDB+P+SeD")
    assert (file.scores, file.scored_step) == (SCORES, 299_000)
    assert file.about == (
        "RRDB (2 blocks, 4 features, growth 8), x4, in SeD names, from 'params_ema'; run_a at step 300,000; "
        "Set5 psnr 30.12 ssim 0.85, Set14 psnr 26.5 ssim 0.7 (at step 299,000)"
    )
    assert torch.equal(image_of(load_generator(file)), image_of(params_ema))
    assert torch.equal(image_of(load_generator(open_generator_file(file.path, entry="params"))), image_of(params))


@pytest.mark.parametrize(("step", "told"), [({"step": 300_000}, "run_a at step 300,000"), ({}, "run_a")])
def test_files_without_scores_or_a_step_are_read(step, told, write):
    path = write()
    payload = checkpoint.load(path)
    checkpoint.save({key: payload[key] for key in ("params", "options")} | step, path)
    file = open_generator_file(path)
    assert (file.name, file.step, file.scale, file.scores) == ("run_a", step.get("step"), 4, {})
    assert file.about.endswith(f"from 'params'; {told}")


def test_other_files_are_identified_by_their_tensors(tmp_path):
    net = SwinIR(embed_dim=12, depths=(1, 2), heads=(2, 3), window=4, upsampler="nearest+conv")
    torch.save({"params_ema": net.state_dict()}, tmp_path / "003_realSR_x4.pth")
    file = open_generator_file(tmp_path / "003_realSR_x4.pth")
    assert (file.name, file.scale, file.step, file.record) == ("003_realSR_x4", 4, None, {})
    assert torch.equal(image_of(load_generator(file)), image_of(net))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "many"}, "has invalid metadata: its step"),
        ({"step": -1}, "has invalid metadata: its step"),
        ({"scale": torch.tensor(4)}, "has invalid metadata: its scale"),
        ({"scores": {"Set5": 30.0}}, "has invalid metadata: its scores"),
        ({"scores": {"\x1b[2J": {}}}, "has invalid metadata: its scores"),
        ({"options": {**OPTIONS, "name": "../../home"}}, "has invalid metadata: its name"),
        ({"options": {**OPTIONS, "generator": "rrdb"}}, "has invalid metadata: its generator"),
        ({"options": {**OPTIONS, "weights": torch.ones(1)}}, "has invalid metadata: its options"),
        ({"options": {**OPTIONS, "generator": {**RRDB, "blocks": 10**12}}}, "contradicts itself: .* blocks 10{12}"),
        ({"options": {**OPTIONS, "generator": {"type": "swinir"}}}, "contradicts itself: .* type 'swinir'"),
    ],
)
def test_invalid_metadata_raises_one_line(changes, message, write):
    with pytest.raises(UserError, match=rf"net\.pth .*{message}") as caught:
        open_generator_file(write(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stated", [2.6, 1e300, float("nan"), "2"])
def test_mlp_ratio_may_differ_from_the_tensors_by_rounding_only(stated, tmp_path):
    state = SwinIR(embed_dim=12, depths=(1,), heads=(2,), window=4, mlp_ratio=2.04).state_dict()  # 24 channels of 24.48
    options = {**OPTIONS, "generator": {"type": "swinir", "mlp_ratio": 2.04}}
    torch.save({**ABOUT, "params": state, "options": options}, tmp_path / "net.pth")
    assert load_generator(open_generator_file(tmp_path / "net.pth"))
    options["generator"]["mlp_ratio"] = stated
    torch.save({**ABOUT, "params": state, "options": options}, tmp_path / "net.pth")
    with pytest.raises(UserError, match="contradicts itself: its metadata states mlp_ratio"):
        open_generator_file(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ({**RRDB, "layers": 2}, "is not valid: .*layers"),
        ({"type": "mamba"}, "is not valid: .*mamba"),
        ({}, "is not valid: "),
    ],
)
def test_unknown_generators_raise_one_line(generator, message, write):
    file = open_generator_file(write(options={**OPTIONS, "generator": generator}))
    with pytest.raises(UserError, match=rf"net\.pth describes a generator that {message}") as caught:
        load_generator(file)
    assert "\n" not in str(caught.value)


@pytest.fixture
def read_back(tmp_path):
    """Writes a file with these tensors and this metadata, and opens it."""

    def read_back_(state, **record):
        torch.save({"params": state, **record}, tmp_path / "net.pth")
        return open_generator_file(tmp_path / "net.pth")

    return read_back_


def test_generator_is_built_from_the_file_alone_or_must_fit_given_options(read_back):
    network = SwinIR(embed_dim=12, depths=(1, 2), heads=(2, 3), window=4, mlp_ratio=2.3)
    file = read_back(network.state_dict())
    assert torch.equal(image_of(load_generator(file)), image_of(network))
    given = {"type": "swinir", "embed_dim": 12, "depths": [1, 2], "heads": [2, 3], "window": 4, "mlp_ratio": 2.3}
    assert torch.equal(image_of(load_generator(file, given)), image_of(network))
    with pytest.raises(UserError, match=r"with window 4 where the options ask for 8$"):
        load_generator(file, {**given, "window": 8})
    with pytest.raises(UserError, match=r"but the options ask for RRDB$"):
        load_generator(file, {"type": "rrdb"})


def small_swinir(**shapes):
    state = SwinIR(embed_dim=1, depths=(2,), heads=(1,), window=2, mlp_ratio=1.0).state_dict()
    return state | {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


def with_windows_of(px):
    state = small_swinir()
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    return state | {name: torch.zeros((2 * px - 1) ** 2, 1) for name in tables}


def metadata_of(generator):
    return {"options": {"name": "run", "generator": generator}, "step": 1}


@pytest.mark.parametrize(
    ("state", "record", "message"),
    [
        (lambda: RRDBNet(blocks=1).state_dict() | {"conv_first.weight": torch.zeros(90_000, 3, 1, 1)}, {}, "not fit"),
        (lambda: small_swinir(conv_first__weight=(10**9, 3, 0, 0)), {}, "not fit|larger than any memory"),
        (lambda: small_swinir(conv_first__weight=(2**62, 3, 0, 0)), {}, "larger than any memory"),
        (lambda: with_windows_of(160), {}, r"masks would take [\d.]+ GB"),
        (small_swinir, metadata_of({"type": "swinir", "mlp_ratio": 1.5}), "with mlp_ratio 1.0 where the options ask"),
        (lambda: {"weight": torch.ones(3)}, metadata_of({"type": "rrdb", "blocks": 10**12}), "unknown architecture"),
    ],
)
def test_huge_sizes_raise_before_memory_is_allocated(state, record, message, read_back):
    file = read_back(state(), **record)
    before_bytes = peak_bytes(torch.device("cpu"))
    with pytest.raises(UserError, match=message) as caught:
        load_generator(file)
    assert "net.pth" in str(caught.value)
    assert peak_bytes(torch.device("cpu")) - before_bytes < 100e6


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # in spandrel
@pytest.mark.parametrize("name", ["HAT", "ESRGAN+", "MMRealSR"])  # with names and shapes of SwinIR's or RRDB's
def test_relatives_of_our_networks_are_read_by_spandrel(name, tmp_path):
    state = NETWORKS[name]().state_dict()
    torch.save({"params-ema": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "net.pth")
    file = open_generator_file(tmp_path / "net.pth")
    other = spandrel.ModelLoader().load_from_state_dict(dict(state))
    assert file.about.startswith(other.architecture.name)
    assert file.about.endswith(", from 'params-ema', stripped of 'module.'")
    assert file.scale == other.scale == 4
    lr = torch.rand(1, 3, 19, 17)
    with torch.inference_mode():
        torch.testing.assert_close(load_generator(file).eval()(lr).clamp(0, 1), other(lr))


def test_spandrel_is_imported_only_for_other_networks(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "spandrel", None)  # an import would fail
    for network in (RRDBNet(features=4, blocks=1), SwinIR(embed_dim=12, depths=(1,), heads=(2,))):
        torch.save(network.state_dict(), tmp_path / "ours.pth")
        load_generator(open_generator_file(tmp_path / "ours.pth"))
    torch.save(NETWORKS["Compact"]().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ImportError):
        open_generator_file(tmp_path / "other.pth")


def test_our_own_network_is_used_for_rrdb_that_was_fine_tuned_through_spandrel(write):
    network = RRDBNet(features=4, blocks=1)
    state = spandrel.ModelLoader().load_from_state_dict(network.state_dict()).model.state_dict()
    recipe = {"type": "spandrel", "weights": "RRDB.pth"}
    file = open_generator_file(write(params=state, options={**OPTIONS, "generator": recipe}))
    assert (file.other, file.generator_options["type"]) == (None, "rrdb")
    for options in (None, recipe):
        assert torch.equal(image_of(load_generator(file, options, scale=4)), image_of(network))


def test_network_that_spandrel_builds_but_that_cannot_run_is_one_sentence(tmp_path):
    """The attention of SCUNet has heads of 32 channels, which spandrel takes for granted."""
    torch.save(SCUNet(config=[1] * 7, dim=16).state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"net\.pth: SCUNet.*, x1, cannot be used: EinopsError: [^\n]+$"):
        load_generator(open_generator_file(tmp_path / "net.pth"))


def test_scale_of_the_recipe_must_be_that_of_the_file(tmp_path):
    torch.save(NETWORKS["Compact"]().state_dict(), tmp_path / "net.pth")
    file = open_generator_file(tmp_path / "net.pth")
    recipe = {"type": "spandrel", "weights": "net.pth"}
    assert load_generator(file, recipe, scale=4).scale == 4
    with pytest.raises(UserError, match=r"net\.pth holds RealESRGAN Compact .*, x4, .*, but the options ask for x2$"):
        load_generator(file, recipe, scale=2)
    with pytest.raises(UserError, match=r"net\.pth holds RealESRGAN Compact .*: it is the wrong file"):
        load_generator(file, RRDB, scale=4)
