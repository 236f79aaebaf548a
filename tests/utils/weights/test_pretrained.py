import hashlib
import re
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

from sed_sr.options.errors import UserError
from sed_sr.utils.weights import pretrained
from sed_sr.utils.weights.catalogue import PUBLISHED
from sed_sr.utils.weights.pretrained import WeightsMissing, locate, sha256_of, verify

pytestmark = pytest.mark.usefixtures("isolated")

CONTENT = safetensors.torch.save({"weight": torch.arange(9)})  # what the server sends
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def files_in(root):
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


@pytest.mark.parametrize("spec", ["model.pth", "pretrained/model.pth", "{root}/model.pth"])
def test_published_file_is_downloaded_once_for_every_form_of_its_name(spec, root, server, publish):
    publish(f"{server.url}/right", sha256=SHA256)
    for _ in range(2):
        path = locate(spec.format(root=root), pretrained_root=root)
        assert path.samefile(root / "model.pth")
        assert path.read_bytes() == CONTENT
    assert server.requests == ["/right"]
    assert files_in(root) == ["model.pth"]


@pytest.mark.parametrize(("page", "reason"), [("other", f"expected {SHA256} but got"), ("absent", "404 Not Found")])
def test_failed_download_leaves_nothing_and_says_where_to_put_the_file(page, reason, root, server, publish):
    publish(f"{server.url}/{page}", sha256=SHA256)
    with pytest.raises(WeightsMissing, match=reason) as caught:
        locate("model.pth", pretrained_root=root)
    assert f"download {server.url}/{page} on another machine and save it as {root / 'model.pth'}" in str(caught.value)
    assert files_in(root) == []


def test_folder_that_cannot_be_written_to_is_reported(tmp_path, publish):
    publish("https://example.org/model.pth", sha256=SHA256)
    (tmp_path / "file").touch()
    with pytest.raises(WeightsMissing, match=r"cannot write .* save it as"):
        locate("model.pth", pretrained_root=tmp_path / "file")


def test_mirror_is_tried_first_and_must_send_the_same_content(root, server, publish, monkeypatch):
    publish(f"{server.url}/right", sha256=SHA256)
    monkeypatch.setenv("SED_WEIGHTS_MIRROR", f"{server.url}/mirror/")
    assert locate("model.pth", pretrained_root=root).read_bytes() == CONTENT
    assert server.requests == ["/mirror/model.pth"]

    server.requests.clear()
    (root / "model.pth").unlink()
    monkeypatch.setenv("SED_WEIGHTS_MIRROR", f"{server.url}/other")
    assert locate("model.pth", pretrained_root=root).read_bytes() == CONTENT
    assert list(dict.fromkeys(server.requests)) == ["/other/model.pth", "/right"]


def test_mirror_without_encryption_is_not_used(root, server, publish, monkeypatch, capsys):
    publish(f"{server.url}/right", sha256=SHA256)
    monkeypatch.setenv("SED_WEIGHTS_MIRROR", "http://mirror.example.org")
    assert locate("model.pth", pretrained_root=root).read_bytes() == CONTENT
    assert "only https is trusted, and http://mirror.example.org/model.pth is not" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["SED_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_variables_forbid_connections_and_the_message_says_what_to_download(
    variable, root, server, publish, monkeypatch
):
    publish(f"{server.url}/right", sha256=SHA256)
    monkeypatch.setenv(variable, "1")
    with pytest.raises(WeightsMissing) as caught:
        locate("model.pth", pretrained_root=root)
    for part in (variable, f"{server.url}/right", str(root / "model.pth")):
        assert part in str(caught.value)
    assert server.requests == []
    monkeypatch.setenv(variable, "0")
    locate("model.pth", pretrained_root=root)


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME", None])
def test_file_in_the_cache_of_torch_hub_is_used(variable, tmp_path, root, server, publish, monkeypatch):
    """torch itself says where the cache is."""
    publish(f"{server.url}/right", sha256=SHA256)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    copy = Path(torch.hub.get_dir(), "checkpoints", "model.pth")
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    assert locate("model.pth", pretrained_root=root) == copy
    assert server.requests == files_in(root) == []

    copy.write_bytes(b"another")
    assert locate("model.pth", pretrained_root=root) == root / "model.pth"


@pytest.mark.parametrize(("content", "sha256", "used"), [(CONTENT, SHA256, True), (b"unknown", None, False)])
def test_file_in_the_cache_of_clip_is_used_if_it_can_be_verified(
    content, sha256, used, tmp_path, root, server, publish
):
    publish(f"{server.url}/right", sha256=sha256)
    copy = tmp_path / "home/.cache/clip/model.pth"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(content)
    assert locate("model.pth", pretrained_root=root) == (copy if used else root / "model.pth")
    assert server.requests == ([] if used else ["/right"])


@pytest.fixture
def hub_copy(tmp_path):
    """A file in the cache of huggingface_hub: a link to a file that is named by its SHA-256."""
    repository = tmp_path / "hub/models--timm--model"
    blob, link = repository / "blobs" / SHA256, repository / "snapshots/1/model.safetensors"
    newest = repository / "refs/main"
    for path in (blob, link, newest):
        path.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    link.symlink_to(blob)
    newest.write_text("1")
    return link


def test_file_in_the_cache_of_huggingface_hub_is_used(hub_copy, root, server, publish):
    publish(f"{server.url}/right", sha256=None, hub_repository="timm/model")
    assert huggingface_hub.try_to_load_from_cache("timm/model", "model.safetensors") == str(hub_copy)
    assert locate("model.pth", pretrained_root=root) == hub_copy
    assert server.requests == files_in(root) == []

    hub_copy.write_bytes(CONTENT[:-1])
    assert locate("model.pth", pretrained_root=root) == root / "model.pth"


def test_file_in_the_cache_of_huggingface_hub_must_be_the_one_that_was_downloaded_first(
    hub_copy, root, server, publish
):
    """Authors may publish other weights under the same name."""
    publish(f"{server.url}/right", sha256=None, hub_repository="timm/model")
    root.mkdir(parents=True)
    (root / "model.pth.sha256").write_text(f"{'0' * 64}  model.pth\n")
    with pytest.raises(WeightsMissing, match="0000"):
        locate("model.pth", pretrained_root=root)
    assert set(server.requests) == {"/right"}


def test_any_model_of_timm_is_published_under_its_name(root, server, monkeypatch):
    monkeypatch.setenv("SED_WEIGHTS_MIRROR", server.url)
    name = "resnet18.a1_in1k.safetensors"
    assert name not in PUBLISHED
    assert locate(name, pretrained_root=root).read_bytes() == CONTENT
    assert (root / f"{name}.sha256").read_text().startswith(SHA256)
    assert server.requests == [f"/{name}"]
    with pytest.raises(WeightsMissing, match="there is no weight file"):
        locate("generator.safetensors", pretrained_root=root)


def test_unpublished_sha256_is_recorded_printed_and_compared_with_later(root, server, publish, capsys):
    publish(f"{server.url}/right", sha256=None)
    path = locate("model.pth", pretrained_root=root)
    assert (root / "model.pth.sha256").read_text() == f"{SHA256}  model.pth\n"
    assert SHA256 in capsys.readouterr().err
    assert verify(path)

    path.unlink()
    publish(f"{server.url}/other", sha256=None)
    with pytest.raises(WeightsMissing, match=SHA256):
        locate("model.pth", pretrained_root=root)
    assert files_in(root) == ["model.pth.sha256"]


def test_file_without_a_published_sha256_must_open_as_weights_before_it_gets_its_name(
    root, server, publish, capsys, monkeypatch
):
    publish(f"{server.url}/page", sha256=None)
    with pytest.raises(WeightsMissing, match=r"/page: .*model\.pth is a text file that begins with '<html>'"):
        locate("model.pth", pretrained_root=root)
    assert files_in(root) == []

    publish(f"{server.url}/right", sha256=None)
    monkeypatch.setenv("SED_WEIGHTS_MIRROR", f"{server.url}/page")
    assert locate("model.pth", pretrained_root=root).read_bytes() == CONTENT
    assert "begins with '<html>'" in capsys.readouterr().err


def test_verify_reports_a_changed_file_and_what_it_cannot_know(tmp_path, publish):
    publish("https://example.org/model.pth", sha256=SHA256)
    path = tmp_path / "model.pth"
    path.write_bytes(CONTENT)
    assert sha256_of(path) == SHA256
    assert verify(path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=f"{SHA256} was expected"):
        verify(path)

    publish("https://example.org/model.pth", sha256=None)
    assert not verify(path)
    path.with_name("my.pth").touch()
    assert not verify(path.with_name("my.pth"))


def test_existing_file_is_used_as_it_is(tmp_path, root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root.mkdir(parents=True)
    (root / "mine.pth").touch()
    assert locate("mine.pth", pretrained_root=root) == root / "mine.pth"
    (tmp_path / "mine.pth").touch()
    assert locate("mine.pth", pretrained_root=root).samefile(tmp_path / "mine.pth")
    assert locate(root / "mine.pth", pretrained_root=root) == root / "mine.pth"


@pytest.mark.parametrize("spec", ["rrbd.pth", "pretrained/rrbd.pth", "/elsewhere/RRDB.pth"])
def test_missing_file_is_reported_with_the_nearest_published_name(spec, root):
    with pytest.raises(UserError, match=rf"no weight file {spec}.*did you mean RRDB\.pth\?"):
        locate(spec, pretrained_root=root)


@pytest.mark.parametrize(
    ("spec", "offered"), [("mine.pth", True), ("pretrained/mine.pth", True), ("../mine.pth", False)]
)
def test_downloads_are_offered_if_one_could_have_been_meant(spec, offered, root):
    with pytest.raises(UserError, match=f"no weight file {spec}: neither {spec} nor .* exists") as caught:
        locate(spec, pretrained_root=root)
    assert ("can be downloaded" in str(caught.value)) == offered


def test_name_that_no_file_can_have_is_a_missing_file(tmp_path):
    with pytest.raises(WeightsMissing, match="there is no weight file"):
        locate("a" * 300, pretrained_root=tmp_path)


def test_large_file_is_read_once_in_a_process_unless_it_changes(tmp_path, publish, monkeypatch):
    publish("https://example.org/model.pth", sha256=SHA256)
    path = tmp_path / "model.pth"
    path.write_bytes(CONTENT)
    digests = Mock(wraps=hashlib.sha256)
    monkeypatch.setattr(pretrained.hashlib, "sha256", digests)
    for _ in range(3):
        assert locate(path, pretrained_root=tmp_path) == path
    assert digests.call_count == 1
    path.unlink()
    path.write_bytes(CONTENT + b"more")
    with pytest.raises(UserError, match="was expected"):
        locate(path, pretrained_root=tmp_path)


def test_unreadable_weights_are_reported_in_a_sentence(tmp_path, publish):
    publish("https://example.org/model.pth", sha256=SHA256)
    (tmp_path / "model.pth").mkdir()
    with pytest.raises(UserError, match="could not be read"):
        locate("model.pth", pretrained_root=tmp_path)


def test_catalogue_is_consistent():
    for name, file in PUBLISHED.items():
        assert name == file.name
        assert file.url.startswith("https://")
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        if file.hub_repository:
            assert file.hub_repository in file.url
            assert name.removesuffix(".safetensors") in timm.list_pretrained()
    # CLIP's URLs contain the SHA-256; torchvision's file names contain its first digits.
    for name in ("RN50.pt", "ViT-B-16.pt"):
        assert PUBLISHED[name].sha256 in PUBLISHED[name].url
    for name in ("vgg19-dcbb9e9d.pth", "vgg16-397923af.pth", "alexnet-owt-7be5be79.pth"):
        assert PUBLISHED[name].sha256.startswith(name.removesuffix(".pth").rpartition("-")[2])
