"""The pretrained weights that the recipes start from: where they lie, where they come from, whether they are intact.

`python -m utils.weights list|fetch|verify` shows them, downloads them, and compares them with their sha256.
"""

import argparse
import difflib
import functools
import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column, Table

from sed_sr.data.files import WriteError, write_text
from sed_sr.options.errors import UserError
from sed_sr.utils.weights.download import DownloadFailed, download, part_of

PIECE_BYTES = 1 << 20
MIRROR = "SED_WEIGHTS_MIRROR"  # https://host/folder that holds files under their names, asked before their own sources
OFFLINE = ("SED_OFFLINE", "HF_HUB_OFFLINE")  # with any of them set to 1, no connection is tried
ANY_WIDTH = 1000  # columns: what a pipe takes
WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
HUB_FILE = "model.safetensors"  # what the weights in each repository of timm on huggingface.co are called


class WeightsMissing(UserError):
    """A weight file is not there and cannot be had."""


@dataclass(frozen=True)
class WeightFile:
    """A published weight file."""

    name: str  # of the file on disk
    purpose: str  # in a few words
    urls: tuple[str, ...]  # the first one is asked first
    sha256: str | None  # None: never published; recorded at the first download
    size_bytes: int | None
    standard: bool = True  # the recipes of the paper or the metrics need it
    hub_repository: str | None = None  # on huggingface.co; what its own tools have downloaded of it serves as well


def _of_openai(name: str, sha256: str) -> WeightFile:
    """A tower of CLIP."""
    return WeightFile(
        name=name,
        purpose="semantics",
        urls=(f"https://openaipublic.azureedge.net/clip/models/{sha256}/{name}",),
        sha256=sha256,
        size_bytes=None,
        standard=False,
    )


def _of_timm(model: str) -> WeightFile:
    """A model of timm."""
    return WeightFile(
        name=f"{model}.safetensors",
        purpose="semantics",
        urls=(f"https://huggingface.co/timm/{model}/resolve/main/{HUB_FILE}",),
        sha256=None,
        size_bytes=None,
        standard=False,
        hub_repository=f"timm/{model}",
    )


KNOWN = {
    file.name: file
    for file in (
        WeightFile(
            name="RRDB.pth",
            purpose="RRDB recipes",
            urls=("https://github.com/cszn/KAIR/releases/download/v1.0/RRDB.pth",),
            sha256=None,
            size_bytes=None,
        ),
        WeightFile(
            name="SwinIR.pth",
            purpose="SwinIR recipes",
            urls=(
                "https://github.com/JingyunLiang/SwinIR/releases/download/v0.0/"
                "001_classicalSR_DF2K_s64w8_SwinIR-M_x4.pth",
            ),
            sha256="4e78e33f22c1aa8a773db0cf4a7381bae97c2362c717f155439ebc690cbd9215",
            size_bytes=67_869_037,
        ),
        WeightFile(
            name="RN50.pt",
            purpose="semantics (CLIP)",
            urls=(
                "https://openaipublic.azureedge.net/clip/models/"
                "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
            ),
            sha256="afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
            size_bytes=255_827_503,
        ),
        WeightFile(
            name="vgg19-dcbb9e9d.pth",
            purpose="perceptual loss",
            urls=("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",),
            sha256="dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
            size_bytes=574_673_361,
        ),
        WeightFile(
            name="vgg16-397923af.pth",
            purpose="LPIPS (VGG)",
            urls=("https://download.pytorch.org/models/vgg16-397923af.pth",),
            sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            size_bytes=553_433_881,
        ),
        WeightFile(
            name="alexnet-owt-7be5be79.pth",
            purpose="LPIPS (AlexNet)",
            urls=("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",),
            sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            size_bytes=244_408_911,
        ),
        _of_openai("RN101.pt", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
        _of_openai("RN50x4.pt", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
        _of_openai("RN50x16.pt", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
        _of_openai("RN50x64.pt", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
        _of_openai("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
        _of_openai("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        _of_openai("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        _of_openai("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
        _of_timm("resnet50.tv_in1k"),
        _of_timm("vit_base_patch16_224.augreg_in21k"),
        _of_timm("vit_small_patch14_dinov2.lvd142m"),
        _of_timm("convnext_tiny.in12k_ft_in1k"),
        _of_timm("vgg19.tv_in1k"),
    )
}


def locate(spec: str | Path, *, pretrained_root: Path, compare: bool = True) -> Path:
    """The path of a weight file, which is downloaded first if it is a known one and not there yet.

    A known file that torch.hub, CLIP or huggingface_hub has downloaded before, verified by its sha256, is taken from
    where it lies.

    Args:
        spec: a path (relative ones: from the working directory, else inside `pretrained_root`), or the name of a
            known file, alone (`RRDB.pth`) or with the folder's (`pretrained/RRDB.pth`). Known are those in `KNOWN`,
            and `<model>.safetensors` of each model that timm has published weights of.
        pretrained_root: the folder of pretrained weights, created when a download needs it.
        compare: look whether a file that is there is what its name says; False: another process of this machine did.

    Raises:
        WeightsMissing: there is no such file, or its download failed or brought other bytes than the published ones.
        UserError: a file in `pretrained_root` is not what its name says.
    """
    spec = Path(os.path.expanduser(spec))  # which leaves the home of nobody as it is
    names_the_folder = spec.parts[:1] == (pretrained_root.name,)
    inside = (pretrained_root.parent if names_the_folder else pretrained_root) / spec
    for path in (spec, inside):
        if os.path.exists(path):  # which is False, and no error, for a name too long to be one
            if compare and path.parent.resolve() == pretrained_root.resolve():
                verify(path)
            return path
    belongs_there = pretrained_root.resolve() in (spec.parent.resolve(), inside.parent.resolve())
    known = _known(spec.name) if belongs_there else None
    if known:
        return _copy_of_other_tools(known, pretrained_root) or _download(known, pretrained_root / known.name)
    looked_in = " nor ".join(dict.fromkeys(str(path) for path in (spec, inside)))
    offer = f", and what can be downloaded to {pretrained_root} is listed by `python -m utils.weights list`"
    raise WeightsMissing(
        f"there is no weight file {spec}: it is not at {looked_in}{offer if belongs_there else ''}{_nearest(spec.name)}"
    )


def verify(path: Path) -> bool:
    """Compare a file with the published sha256 of its name, or with the one recorded when it was downloaded.

    Returns:
        True if it is that file, False if there is nothing to compare it with.

    Raises:
        UserError: it is another file than its name says, or cannot be read.
    """
    expected = _expected_sha256(path)
    if expected is None:
        return False
    found = sha256_of(path)
    if found != expected:
        raise UserError(f"{path} has the sha256 {found}, but {expected} was expected: delete it and fetch it again")
    return True


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits. Raises UserError where the file cannot be read."""
    try:
        status = path.stat()
        return _sha256_of(path, (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns))
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}") from error


@functools.cache  # a run asks for the same large files several times
def _sha256_of(path: Path, state: tuple[int, ...]) -> str:
    """`state`: what changes with the file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _published_sha256(path: Path) -> str | None:
    known = KNOWN.get(path.name)
    return known.sha256 if known else None


def _expected_sha256(path: Path) -> str | None:
    published = _published_sha256(path)
    if published is not None:
        return published
    record = _record_of(path)
    words = record.read_text().split() if os.path.isfile(record) else []
    if words:
        return words[0]
    target = os.path.basename(os.path.realpath(path))  # huggingface_hub keeps links to files called by their sha256
    return target if re.fullmatch("[0-9a-f]{64}", target) else None


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _known(name: str) -> WeightFile | None:
    """The published file of that name."""
    model = name.removesuffix(".safetensors")
    if name in KNOWN or model == name:
        return KNOWN.get(name)
    import timm  # not before it is needed: it imports PyTorch

    return _of_timm(model) if model in timm.list_pretrained() else None


def _nearest(name: str) -> str:
    names = {known.lower(): known for known in KNOWN}
    nearest = difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {names[nearest[0]]}?" if nearest else ""


def _copy_of_other_tools(file: WeightFile, root: Path) -> Path | None:
    """What torch.hub, CLIP or huggingface_hub has downloaded of a file, if it is to the byte the one of `root`."""
    expected = _expected_sha256(root / file.name)
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    torch_home = os.environ.get("TORCH_HOME", f"{cache}/torch")
    paths = [
        Path(os.path.expanduser(folder), file.name) for folder in (f"{torch_home}/hub/checkpoints", "~/.cache/clip")
    ]
    if file.hub_repository:
        import huggingface_hub  # not before it is needed

        cached = huggingface_hub.try_to_load_from_cache(file.hub_repository, HUB_FILE)
        if isinstance(cached, str):
            paths.append(Path(cached))
    for path in paths:
        if os.access(path, os.R_OK) and path.is_file() and sha256_of(path) == (expected or _expected_sha256(path)):
            return path
    return None


def _download(file: WeightFile, path: Path) -> Path:
    offline = next((name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)
    if offline:
        raise WeightsMissing(
            f"{path} is not there, and {offline} forbids to download it: fetch {file.urls[0]} on another machine and "
            "put it there"
        )
    from sed_sr.utils.weights import checkpoint  # not before it is needed: PyTorch takes seconds, and `list` none

    expected = _expected_sha256(path)
    # Whoever answers in place of the server, as with a page to log in, must not become what is compared with later.
    check = checkpoint.load if file.sha256 is None else None
    mirror = os.environ.get(MIRROR)
    urls = (f"{mirror.rstrip('/')}/{file.name}", *file.urls) if mirror else file.urls
    try:
        download(urls, path, size_bytes=file.size_bytes, sha256=expected, check=check)
    except (DownloadFailed, WriteError) as error:
        raise WeightsMissing(
            f"{file.name} could not be downloaded: {error}; fetch it on another machine and put it at {path}"
        ) from error
    if expected is None:
        found = sha256_of(path)
        write_text(_record_of(path), f"{found}  {path.name}\n")
        print(
            f"The sha256 of {path.name} was never published; that of this download, {found}, is kept in "
            f"{_record_of(path)}, and later checks compare with it.",
            file=sys.stderr,
        )
    return path


def main() -> int:
    """Show, fetch or verify pretrained weights; returns the exit code, 1 where some are missing or wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.weights",
        description="The pretrained weights that the recipes start from.",
        epilog=f"{MIRROR}=https://host/folder is asked first for files of these names; with {OFFLINE[0]}=1 nothing is "
        "downloaded. What torch.hub ($TORCH_HOME), CLIP or huggingface_hub ($HF_HOME) has downloaded before is used "
        "where it lies.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    lister = commands.add_parser("list", help="names, sizes, sources, sha256, and what is here of them")
    fetcher = commands.add_parser("fetch", help="download what is missing")
    fetcher.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="a name in the list; <model>.safetensors of any model of timm; "
        "all: what the recipes of the paper and the metrics need",
    )
    verifier = commands.add_parser("verify", help="compare what is here with its published or recorded sha256")
    verifier.add_argument("names", nargs="*", metavar="NAME", help="files that must be here (default: all that are)")
    for command in (lister, fetcher, verifier):
        command.add_argument(
            "--pretrained_root",
            type=Path,
            default=Path("pretrained"),
            metavar="FOLDER",
            help="the folder of the weights (default pretrained)",
        )
    args = parser.parse_args()
    if args.command == "list":
        return _list(args.pretrained_root)
    if args.command == "fetch":
        return _fetch(args.names, args.pretrained_root)
    return _verify(args.names, args.pretrained_root)


def _list(root: Path) -> int:
    console = Console(highlight=False, markup=False)
    states = {file.name: _state(file, root) for file in KNOWN.values()}
    tables = _tables(states, whole=True)
    width = max(console.measure(table, options=console.options.update_width(ANY_WIDTH)).maximum for table in tables)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = width
    for table in tables if width <= console.width else _tables(states, whole=False):
        console.print(table)
    return 0


def _tables(states: dict[str, str], *, whole: bool) -> list[Table]:
    """`whole`: with sha256 and sources; else what a narrow terminal takes."""
    groups = {
        "What the recipes of the paper and the metrics need (`fetch all`)": True,
        "For other semantic extractors (fetched by name, as is <model>.safetensors of any timm model)": False,
    }
    tables = [
        _table([file for file in KNOWN.values() if file.standard == standard], states, title=title, whole=whole)
        for title, standard in groups.items()
    ]
    if not whole:
        tables[-1].caption = "with sha256 and sources in a wide terminal, or through a pipe"
    return tables


def _table(files: list[WeightFile], states: dict[str, str], *, title: str, whole: bool) -> Table:
    name, size, purpose = Column("file", no_wrap=True), Column("MB", justify="right"), Column("for", no_wrap=True)
    table = Table(
        name, size, purpose, Column("here", overflow="fold"), box=box.SIMPLE, title=title, title_justify="left"
    )
    if whole:
        table.add_column("sha256")
        table.add_column("source")
    for file in files:
        cells = [
            file.name,
            "?" if file.size_bytes is None else f"{file.size_bytes / 1e6:.1f}",
            file.purpose,
            states[file.name],
        ]
        table.add_row(*cells, *([file.sha256 or "unpublished", " ".join(file.urls)] if whole else []))
    return table


def _state(file: WeightFile, root: Path) -> str:
    path = root / file.name
    if os.path.isdir(path):
        return "a folder, no file"
    if os.path.exists(path):
        try:
            if not verify(path):
                return "not verifiable"
        except UserError:
            return "another file"
        return "verified" if file.sha256 else "as first downloaded"
    copy = _copy_of_other_tools(file, root)
    if copy is not None:
        return f"verified, in {copy.parent}"
    part = part_of(path)
    return f"{part.stat().st_size / 1e6:.1f} MB so far" if os.path.exists(part) else "missing"


def _fetch(names: list[str], root: Path) -> int:
    for name in names:
        if name != "all" and _known(name) is None:
            raise UserError(
                f"{name} is none of the files that can be fetched: {', '.join(KNOWN)}, and <model>.safetensors of the "
                f"models in timm.list_pretrained(){_nearest(name)}"
            )
    standard = [file.name for file in KNOWN.values() if file.standard]
    wanted = [each for name in names for each in (standard if name == "all" else [name])]
    failed = False
    for name in dict.fromkeys(wanted):
        try:
            path = locate(root / name, pretrained_root=root)
        except UserError as error:  # the others may be had all the same
            print(error, file=sys.stderr)
            failed = True
        else:
            print(_verdict(path))
    return int(failed)


def _verify(names: list[str], root: Path) -> int:
    if names:
        paths = [root / name for name in names]
    else:
        here = sorted(root.iterdir()) if root.is_dir() else []
        elsewhere = [_copy_of_other_tools(file, root) for file in KNOWN.values() if not (root / file.name).exists()]
        paths = [path for path in (*here, *elsewhere) if path is not None and path.suffix in WEIGHT_SUFFIXES]
        if not paths:
            print(f"there are no weights in {root}")
    failed = False
    for path in paths:
        try:
            if not os.path.exists(path):
                raise WeightsMissing(f"{path} is not there")
            print(_verdict(path))
        except UserError as error:
            print(error)
            failed = True
    return int(failed)


def _verdict(path: Path) -> str:
    if not verify(path):
        return f"{path}: no sha256 is known to compare it with"
    if _published_sha256(path) is None:
        return f"{path}: as recorded at its first download; no published sha256 to compare it with"
    return f"{path}: its sha256 is right"
