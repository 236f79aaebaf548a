"""Files on the Hugging Face hub: found wherever weights are, used from the cache, and refused in one sentence."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import utils

from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.candidates import Entry
from sed_sr.utils.weights.extractor_file import load_extractor_state, load_perceptual_state
from sed_sr.utils.weights.hub import HubFile
from sed_sr.utils.weights.pretrained import WeightsMissing, locate, sha256_of, verify
from tests.hub_server import READ

FIRST, SECOND = (safetensors.torch.save({"weight": torch.full((9,), value)}) for value in (1.0, 2.0))
ROOT = Path("pretrained")


@pytest.fixture
def repository(hub):
    repository = hub.publish("user/net")
    repository.commit({"model.safetensors": FIRST, "deep/er/net.pth": b"other"})
    return repository


def content_of(address, **choice):
    return locate(address, pretrained_root=ROOT, **choice).read_bytes()


def refusal_of(address, **choice):
    with pytest.raises(WeightsMissing) as caught:
        locate(address, pretrained_root=ROOT, **choice)
    message = str(caught.value)
    assert message.startswith(f"{address} could not be downloaded: ")
    assert "\n" not in message
    return message


def test_file_is_downloaded_once_and_replaced_when_the_repository_changes(hub, repository):
    address = "hf://user/net/model.safetensors"
    assert [content_of(address) for _ in range(2)] == [FIRST, FIRST]
    assert content_of("hf://user/net/deep/er/net.pth") == b"other"
    assert len(hub.downloads) == 2
    (before,) = repository.commits
    repository.commit({"model.safetensors": SECOND})
    assert content_of(address) == SECOND
    assert content_of(f"hf://user/net@{before}/model.safetensors") == FIRST
    assert content_of("hf://user/net@main/model.safetensors") == SECOND


@pytest.mark.parametrize("variable", ["SED_OFFLINE", "HF_HUB_OFFLINE"])
def test_without_a_network_the_cache_is_used_and_nothing_is_requested(variable, hub, repository, monkeypatch):
    content_of("hf://user/net/model.safetensors")
    hub.requests.clear()
    monkeypatch.setenv(variable, "1")
    assert content_of("hf://user/net/model.safetensors") == FIRST
    message = refusal_of("hf://user/net/deep/er/net.pth")
    assert f"{variable} forbids downloads" in message
    assert "python -m utils.weights fetch hf://user/net/deep/er/net.pth" in message
    assert hub.requests == []


def test_second_process_of_a_machine_looks_into_the_cache_only(hub, repository):
    refusal_of("hf://user/net/model.safetensors", check_hash=False)
    assert hub.requests == []
    content_of("hf://user/net/model.safetensors")
    hub.requests.clear()
    assert content_of("hf://user/net/model.safetensors", check_hash=False) == FIRST
    assert hub.requests == []


def test_damaged_copy_in_the_cache_is_noticed_and_can_be_replaced(hub, repository):
    address = "hf://user/net/model.safetensors"
    blob = Path(os.path.realpath(locate(address, pretrained_root=ROOT)))
    blob.write_bytes(FIRST[:-1] + b"x")
    with pytest.raises(UserError, match=f"sha256 .*: delete {blob} and fetch it again"):
        locate(address, pretrained_root=ROOT)
    blob.unlink()
    assert content_of(address) == FIRST


def test_blob_that_links_to_one_named_by_another_hash_can_be_verified(tmp_path):
    """huggingface_hub shares files of several repositories under a hash that is not their SHA-256."""
    shared = tmp_path / ("0" * 64)
    shared.write_bytes(FIRST)
    blob, link = tmp_path / sha256_of(shared), tmp_path / "model.safetensors"
    blob.symlink_to(shared.name)
    link.symlink_to(blob.name)
    assert verify(link)
    shared.write_bytes(SECOND)
    with pytest.raises(UserError, match="sha256"):
        verify(link)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://user/other/model.safetensors", "there is no repository"),
        (
            "hf://user/hidden/model.safetensors",
            "or it is private, which needs `hf auth login` or the variable HF_TOKEN",
        ),
        ("hf://user/gated/model.safetensors", "gated is gated: accept its conditions there"),
        ("hf://user/net@v2/model.safetensors", "has no revision v2"),
        ("hf://user/net/model.safetensor", "has no file model.safetensor (did you mean model.safetensors?)"),
        ("hf://user/net/x", "has no file x; it has model.safetensors, deep/er/net.pth"),
        ("hf://user/a--b/x", "Cannot have -- or .. in repo_id"),
    ],
)
def test_refusal_says_what_is_wrong(address, expected, hub, repository, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    hub.publish("user/hidden", private=True).commit({"model.safetensors": FIRST})
    hub.publish("user/gated", gated=True).commit({"model.safetensors": FIRST})
    assert expected in refusal_of(address)


def test_token_gives_access_to_a_private_repository(hub, monkeypatch):
    hub.publish("user/hidden", private=True).commit({"model.safetensors": FIRST})
    monkeypatch.setenv("HF_TOKEN", READ)
    assert content_of("hf://user/hidden/model.safetensors") == FIRST


def test_connection_that_fails_is_one_sentence(hub, repository, monkeypatch):
    monkeypatch.setattr(utils._http.time, "sleep", lambda _: None)
    content_of("hf://user/net/model.safetensors")
    hub.shutdown()
    hub.server_close()
    assert content_of("hf://user/net/model.safetensors") == FIRST
    assert "Connection refused" in refusal_of("hf://user/net/deep/er/net.pth")


def test_names_that_the_hub_sends_cannot_control_the_terminal(hub):
    hub.publish("user/net").commit({"a\nforged: line\x1b[31m": b""})
    assert "a\\nforged: line\\x1b[31m" in refusal_of("hf://user/net/x")


@pytest.mark.parametrize(
    "address",
    ["hf://", "hf://user", "hf://user/net", "hf://user/net/", "hf://user/net@/x", "hf://user/net/../x", "hf://user/net/a//b",
     "hf://us er/net/x", "hf://../net/..", "hf://user/net@a@b/x"],
)  # fmt: skip
def test_text_that_is_no_address_is_refused_without_a_request(address, hub):
    with pytest.raises(UserError, match="expected was hf://user/repository/file or hf://user/repository@revision/file"):
        locate(address, pretrained_root=ROOT)
    assert hub.requests == []


def test_parts_of_an_address():
    assert HubFile.parse("hf://user/net.x4/a b=c@d.pth") == ("user/net.x4", "a b=c@d.pth", None)
    assert HubFile.parse("hf://user/net@v1.0/a/b.pth") == ("user/net", "a/b.pth", "v1.0")


def test_address_may_have_a_label_and_an_equals_sign():
    assert Entry.parse("hf://user/net/a=b.pth") == Entry("hf://user/net/a=b.pth")
    assert Entry.parse("A=hf://user/net/a=b.pth") == Entry("hf://user/net/a=b.pth", "A")


def test_pretrained_networks_are_read_from_the_hub(hub):
    state = {"weight": torch.arange(9.0)}
    hub.publish("user/nets").commit({"vgg/net.safetensors": safetensors.torch.save(state)})
    address = "hf://user/nets/vgg/net.safetensors"
    vgg = load_perceptual_state("vgg19", address, pretrained_root=ROOT)
    extractor = load_extractor_state("timm/resnet18.a1_in1k", address, pretrained_root=ROOT)
    assert vgg.keys() == extractor.keys() == state.keys()
    assert torch.equal(vgg["weight"], state["weight"])
    assert torch.equal(extractor["weight"], state["weight"])
