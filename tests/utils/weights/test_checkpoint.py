import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import spandrel
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import nn

from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.options.errors import UserError
from sed_sr.utils.weights.checkpoint import (
    as_safetensors,
    is_training_state,
    load,
    save,
    save_generator,
    save_state,
    snapshot,
)

FORMATS = {
    "torch": lambda state, path: torch.save(state, path),
    "torch, old format": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda state, path: safetensors.torch.save_file(state, path),
}


def small_rrdb():
    return RRDBNet(features=4, blocks=2, growth=32)  # spandrel supports no other growth


def small_swinir():
    return SwinIR(window=4, depths=(2, 2), embed_dim=12, heads=(2, 2))


def image_of(network):
    lr = torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network.eval()(lr)


@pytest.mark.parametrize("network", [small_rrdb, small_swinir])
def test_other_tools_read_what_is_saved(network, tmp_path):
    original = network()
    state = original.state_dict()
    about = {"options": {"name": "run"}, "step": 1, "scale": 4, "scores": {"Set5": {"psnr": 30.5}}, "scored_step": 1}
    save_generator(tmp_path / "net.pth", params=state, params_ema=None, **about)
    assert "params_ema" not in load(tmp_path / "net.pth")
    reference = spandrel.ModelLoader().load_from_file(tmp_path / "net.pth").model
    torch.testing.assert_close(image_of(reference), image_of(original), rtol=1e-4, atol=1e-4)


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("write", ["torch", "torch, old format", "pickle 2", "pickle 5"])
def test_payloads_are_rejected_and_never_run(write, tmp_path):
    path, trace = tmp_path / "net.pth", tmp_path / "executed"
    contents = {"params": small_rrdb().state_dict(), "extra": Payload(trace)}
    if write.startswith("torch"):
        torch.save(contents, path, _use_new_zipfile_serialization=write == "torch")
    else:
        path.write_bytes(pickle.dumps({"extra": Payload(trace)}, protocol=int(write[-1])))
    with pytest.raises(UserError, match="could run code"):
        load(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists(), "the payload does nothing, so this test shows nothing"


@pytest.fixture(scope="module", params=FORMATS)
def stored(request, tmp_path_factory):
    """A path and the bytes of the weights saved there."""
    path = tmp_path_factory.mktemp("stored") / "net.pth"
    FORMATS[request.param](small_rrdb().state_dict(), path)
    return path, path.read_bytes()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(kept=st.floats(0, 1, exclude_max=True))
def test_truncated_file_is_rejected_in_a_sentence(stored, kept):
    path, whole = stored
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=r"net\.pth (is|holds) .*") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_every_flipped_bit_is_detected_or_harmless(tmp_path):
    """Two bits of every byte of a small file, one by one: of tensors, of the zip archive around them, of padding."""
    path = tmp_path / "state.pth"
    save_state(path, {"step": 7, "params": {"weight": torch.randn(4, 4)}})
    state, whole = load(path), path.read_bytes()
    refused = 0
    flips = [(byte, (byte + step) % 8) for byte in range(len(whole)) for step in (0, 3)]
    for byte, bit in flips:
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            loaded = load(path)
        except UserError:
            refused += 1
        else:
            assert equal(loaded, state), f"bit {bit} of byte {byte} was not detected"
    assert 2 * 64 < refused < len(flips)  # the tensor's bits at least; not those of dates and padding


def test_files_saved_without_checksums_load(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(9)}, tmp_path / "net.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "net.pth") as archive:
        assert archive.testzip() is not None
    assert torch.equal(load(tmp_path / "net.pth")["w"], torch.arange(9))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html>\n<body>Sign in</body></html>", "is a text file that begins with '<!DOCTYPE html>'"),
        (b"hello", "is a text file"),
        (b"\n\n", "is a text file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "net.pth (is|holds)"),
        (bytes(100), "net.pth (is|holds)"),
        (helper.make_model(helper.make_graph([], "", [], [])).SerializeToString(), "net.pth is an ONNX program"),
    ],
)
def test_files_of_other_kinds_are_rejected_in_a_sentence(contents, message, tmp_path):
    (tmp_path / "net.pth").write_bytes(contents)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "net.pth")
    assert "\n" not in str(caught.value)


def test_missing_files_directories_and_programs_are_rejected_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"net\.pth does not exist"):
        load(tmp_path / "net.pth")
    with pytest.raises(UserError, match="is a directory"):
        load(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but CLIP's RN50.pt is a TorchScript file
        torch.jit.trace(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 1, 1)).save(tmp_path / "program.pt")
    with pytest.raises(UserError, match="is a TorchScript program"):
        load(tmp_path / "program.pt")


def test_objects_that_cannot_be_loaded_are_not_saved(tmp_path):
    with pytest.raises(AssertionError, match="pathlib"):
        save({"options": {"root": Path("data")}}, tmp_path / "net.pth")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def training_state():
    return {
        "step": 12,
        "params": small_rrdb().state_dict(),
        "params_ema": small_rrdb().state_dict(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99)}]},
        "random": torch.get_rng_state(),
    }


def test_safetensors_keep_the_record_and_other_readers_find_only_the_weights(tmp_path):
    state = small_rrdb().state_dict()
    record = {"options": {"name": "run", "list": [1, 2.5, None]}, "scores": {"Set5": {"psnr": float("inf")}}}
    (tmp_path / "net.safetensors").write_bytes(as_safetensors(state, entry="params_ema", record=record))
    assert equal(load(tmp_path / "net.safetensors"), {"params_ema": state, **record})
    assert equal(safetensors.torch.load_file(tmp_path / "net.safetensors"), state)


@pytest.mark.parametrize("record", ["{", "[" * 100_000])
def test_damaged_metadata_is_rejected_in_a_sentence(record, tmp_path):
    metadata = {"sed_record": record}
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "net.safetensors", metadata=metadata)
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "net.safetensors")


def test_training_state_is_loaded_as_it_was_saved(training_state, tmp_path):
    path = tmp_path / "state.pth"
    save_state(path, training_state)
    loaded = load(path)
    assert is_training_state(loaded)
    assert loaded.keys() - training_state.keys() == {"format"}
    assert loaded["optimizer"]["param_groups"] == training_state["optimizer"]["param_groups"]
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], torch.ones(2))
    assert torch.equal(loaded["random"], training_state["random"])


def test_snapshot_does_not_change_and_is_no_larger_than_its_original(tmp_path):
    network = nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)).to(memory_format=torch.channels_last)
    state = {"step": 1, "params": network.state_dict(), "all": [network.state_dict(), (torch.zeros(0),)]}
    save_state(tmp_path / "original.pth", state)
    copy = snapshot(state)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(1)
    save_state(tmp_path / "copy.pth", copy)
    assert equal(load(tmp_path / "copy.pth"), load(tmp_path / "original.pth"))
    assert not equal(copy["params"], network.state_dict())
    assert (tmp_path / "copy.pth").stat().st_size <= (tmp_path / "original.pth").stat().st_size
    assert copy["params"]._metadata == state["params"]._metadata
    assert all(copy["params"][name].stride() == value.stride() for name, value in state["params"].items())


def test_generator_weights_are_not_a_training_state(tmp_path):
    torch.save({"params": small_rrdb().state_dict()}, tmp_path / "net.pth")
    assert not is_training_state(load(tmp_path / "net.pth"))
