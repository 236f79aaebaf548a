"""Find, download and verify pretrained weights."""

import difflib
import functools
import hashlib
import os
import re
import sys
from pathlib import Path

from sed_sr.data.files import WriteError, write_text
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import hub
from sed_sr.utils.weights.catalogue import HUB_FILE, PUBLISHED, WeightFile, timm_file
from sed_sr.utils.weights.download import DownloadFailed, WeightsMissing, download, offline_variable

CHUNK_BYTES = 1 << 20
MIRROR = "SED_WEIGHTS_MIRROR"  # https://host/folder with files under their names; tried before their own sources


def locate(spec: str | Path, *, pretrained_root: Path, check_hash: bool = True) -> Path:
    """The path of a weight file. A published file that does not exist, or one of the hub, is downloaded first.

    A published file that torch.hub, CLIP or huggingface_hub has downloaded is used from their cache if its SHA-256 is
    right.

    Args:
        spec: a path (a relative one: from the working directory, else inside `pretrained_root`), or the name of a
            published file, alone (`RRDB.pth`) or with the folder (`pretrained/RRDB.pth`), or the address of a file on
            the Hugging Face hub (`hf://user/repository/file`), which is in the cache of huggingface_hub then.
        pretrained_root: folder of pretrained weights; created by the first download.
        check_hash: compare the SHA-256 of an existing file. False if another process of this machine has done so; a
            file of the hub is then only looked up in the cache.

    Raises:
        WeightsMissing: there is no such file, or its download failed.
        UserError: a file in `pretrained_root` or in the cache has another SHA-256 than its name implies, or `spec` is
            not a valid address.
    """
    if isinstance(spec, str) and hub.is_address(spec):
        path = hub.fetch(spec, only_cached=not check_hash)
        if check_hash:
            verify(path)
        return path
    spec = Path(os.path.expanduser(spec))
    names_the_folder = spec.parts[:1] == (pretrained_root.name,)
    inside = (pretrained_root.parent if names_the_folder else pretrained_root) / spec
    for path in (spec, inside):
        if os.path.exists(path):  # not Path.exists, which raises an error if the name is too long
            if check_hash and path.parent.resolve() == pretrained_root.resolve():
                verify(path)
            return path
    may_be_published = pretrained_root.resolve() in (spec.parent.resolve(), inside.parent.resolve())
    file = find_published(spec.name) if may_be_published else None
    if file:
        return cached_by_other_tools(file, pretrained_root) or fetch(file, pretrained_root)
    tried = " nor ".join(dict.fromkeys(str(path) for path in (spec, inside)))
    offer = "; `python -m utils.weights list` shows the files that can be downloaded" if may_be_published else ""
    raise WeightsMissing(f"there is no weight file {spec}: neither {tried} exists{offer}{suggestion(spec.name)}")


def fetch(file: WeightFile, pretrained_root: Path) -> Path:
    """Download a published file into `pretrained_root`. Raises WeightsMissing if that fails."""
    path = pretrained_root / file.name
    by_hand = f"download {file.url} on another machine and save it as {path}"
    offline = offline_variable()
    if offline:
        raise WeightsMissing(f"{path} does not exist, and {offline} forbids downloads: {by_hand}")
    from sed_sr.utils.weights import checkpoint  # here, because it imports PyTorch, and `list` should be quick

    expected = expected_sha256(path)
    # Without a hash, a login page sent in place of the file would be recorded as what to compare with later.
    check = checkpoint.load if expected is None else None
    mirror = os.environ.get(MIRROR)
    urls = (f"{mirror.rstrip('/')}/{file.name}", file.url) if mirror else (file.url,)
    try:
        # Also timm's files: huggingface_hub would put them into its own cache, out of reach of the mirror.
        download(urls, path, sha256=expected, check=check)
    except (DownloadFailed, WriteError) as error:
        raise WeightsMissing(f"{file.name} could not be downloaded: {error}; {by_hand}") from error
    if expected is None:
        sha256 = sha256_of(path)
        write_text(_record_of(path), f"{sha256}  {path.name}\n")
        print(
            f"No SHA-256 was published for {path.name}. That of this download, {sha256}, is recorded in "
            f"{_record_of(path)}; later checks compare with it.",
            file=sys.stderr,
        )
    return path


def verify(path: Path) -> bool:
    """Compare a file with the SHA-256 that was published for its name, or recorded when it was downloaded.

    Returns:
        Whether there is a SHA-256 to compare with.

    Raises:
        UserError: the SHA-256 differs, or the file cannot be read.
    """
    expected = expected_sha256(path)
    if expected is None:
        return False
    found = sha256_of(path)
    if found != expected:
        what = os.path.realpath(path) if path.is_symlink() else "it"
        raise UserError(f"{path} has the sha256 {found}, but {expected} was expected: delete {what} and fetch it again")
    return True


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as hexadecimal digits. Raises UserError if the file cannot be read."""
    try:
        status = path.stat()
        return _sha256_of(path, (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns))
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}") from error


@functools.cache  # a run verifies the same large files several times
def _sha256_of(path: Path, version: tuple[int, ...]) -> str:
    """`version`: changes with the file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def expected_sha256(path: Path) -> str | None:
    """The SHA-256 that a file of this name must have; None if there is nothing to compare with."""
    published = PUBLISHED.get(path.name)
    if published and published.sha256:
        return published.sha256
    record = _record_of(path)
    words = record.read_text().split() if os.path.isfile(record) else []
    if words:
        return words[0]
    # huggingface_hub links to a file named by its SHA-256, which may link to one named by another hash.
    while os.path.exists(path) and os.path.islink(path):
        path = path.parent / os.readlink(path)
        if re.fullmatch("[0-9a-f]{64}", path.name):
            return path.name
    return None


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def find_published(name: str) -> WeightFile | None:
    """The published file of that name: one of the catalogue, or `<model>.safetensors` of any model of timm."""
    model = name.removesuffix(".safetensors")
    if name in PUBLISHED or model == name:
        return PUBLISHED.get(name)
    import timm  # here, because it imports PyTorch, and `list` should be quick

    return timm_file(model) if model in timm.list_pretrained() else None


def suggestion(name: str) -> str:
    """`; did you mean RRDB.pth?` for a name that is close to a published one, else nothing."""
    names = {published.lower(): published for published in PUBLISHED}
    nearest = difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {names[nearest[0]]}?" if nearest else ""


def cached_by_other_tools(file: WeightFile, pretrained_root: Path) -> Path | None:
    """The copy of a file in the cache of torch.hub, CLIP or huggingface_hub, if its SHA-256 is right."""
    expected = expected_sha256(pretrained_root / file.name)
    torch_home = os.environ.get("TORCH_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch"))
    folders = (os.path.join(torch_home, "hub/checkpoints"), "~/.cache/clip")
    paths = [Path(os.path.expanduser(folder), file.name) for folder in folders]
    if file.hub_repository:
        import huggingface_hub  # here, because only timm's files need it

        cached = huggingface_hub.try_to_load_from_cache(file.hub_repository, HUB_FILE)
        if isinstance(cached, str):
            paths.append(Path(cached))
    for path in paths:
        if os.access(path, os.R_OK) and path.is_file() and sha256_of(path) == (expected or expected_sha256(path)):
            return path
    return None
