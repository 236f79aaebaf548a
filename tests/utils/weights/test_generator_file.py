"""What a file of weights says of itself, and whether it is believed."""

import pytest
import torch

from sed_sr.models.build import load_generator
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.generator_file import open_generator_file

RRDB = {"type": "rrdb", "features": 4, "blocks": 2, "growth": 8}
OPTIONS = {"name": "run_a", "generator": RRDB, "test": {"paper_row": "RRDB+P+SeD"}, "losses": {"gan": None}}
SCORES = {"Set5": {"psnr": 30.125, "ssim": 0.85}, "Set14": {"psnr": 26.5, "ssim": 0.7}}
ABOUT = {"options": OPTIONS, "step": 300_000, "scale": 4, "scores": SCORES, "scored_step": 299_000}


@pytest.fixture
def write(tmp_path):
    """Writes a file of a small RRDB's weights beside this record."""

    def write_(**changes):
        state = RRDBNet(features=4, blocks=2, growth=8).state_dict()
        torch.save({"params": state, **ABOUT, **changes}, tmp_path / "net.pth")
        return tmp_path / "net.pth"

    return write_


def image_of(network):
    with torch.inference_mode():
        return network.eval()(torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0)))


def test_a_checkpoint_knows_its_network_run_step_and_scores(tmp_path):
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


def test_other_files_are_known_by_their_tensors(tmp_path):
    net = SwinIR(embed_dim=12, depths=(1, 2), heads=(2, 3), window=4, upsampler="nearest+conv")
    torch.save({"params_ema": net.state_dict()}, tmp_path / "003_realSR_x4.pth")
    file = open_generator_file(tmp_path / "003_realSR_x4.pth")
    assert (file.name, file.scale, file.step, file.record) == ("003_realSR_x4", 4, None, {})
    assert torch.equal(image_of(load_generator(file)), image_of(net))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "many"}, "makes no sense: its step"),
        ({"step": -1}, "makes no sense: its step"),
        ({"scale": torch.tensor(4)}, "makes no sense: its scale"),
        ({"scores": {"Set5": 30.0}}, "makes no sense: its scores"),
        ({"scores": {"\x1b[2J": {}}}, "makes no sense: its scores"),
        ({"options": {**OPTIONS, "name": "../../home"}}, "makes no sense: its name"),
        ({"options": {**OPTIONS, "generator": "rrdb"}}, "makes no sense: its generator"),
        ({"options": {**OPTIONS, "weights": torch.ones(1)}}, "makes no sense: its options"),
        ({"options": {**OPTIONS, "generator": {**RRDB, "blocks": 10**12}}}, "contradicts itself: .* blocks 10{12}"),
        ({"options": {**OPTIONS, "generator": {"type": "swinir"}}}, "contradicts itself: .* type 'swinir'"),
    ],
)
def test_records_that_make_no_sense_are_refused_in_a_sentence(changes, message, write):
    with pytest.raises(UserError, match=rf"net\.pth .*{message}") as caught:
        open_generator_file(write(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", [2.6, 1e300, float("nan"), "2"])
def test_a_fraction_may_differ_from_the_tensors_by_a_rounding_only(said, tmp_path):
    state = SwinIR(embed_dim=12, depths=(1,), heads=(2,), window=4, mlp_ratio=2.04).state_dict()  # 24 channels of 24.48
    options = {**OPTIONS, "generator": {"type": "swinir", "mlp_ratio": 2.04}}
    torch.save({**ABOUT, "params": state, "options": options}, tmp_path / "net.pth")
    assert load_generator(open_generator_file(tmp_path / "net.pth"))
    options["generator"]["mlp_ratio"] = said
    torch.save({**ABOUT, "params": state, "options": options}, tmp_path / "net.pth")
    with pytest.raises(UserError, match="contradicts itself: it says of itself mlp_ratio"):
        open_generator_file(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ({**RRDB, "layers": 2}, "cannot be: .*layers"),
        ({"type": "mamba"}, "cannot be: .*mamba"),
        ({}, "cannot be: "),
    ],
)
def test_generators_that_this_project_does_not_have_are_refused_in_a_sentence(generator, message, write):
    file = open_generator_file(write(options={**OPTIONS, "generator": generator}))
    with pytest.raises(UserError, match=rf"net\.pth asks for a generator that {message}") as caught:
        load_generator(file)
    assert "\n" not in str(caught.value)
