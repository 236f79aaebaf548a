"""The command `python -m utils.weights list|fetch|verify|push`."""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column, Table

from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import hub
from sed_sr.utils.weights.catalogue import PUBLISHED, WeightFile
from sed_sr.utils.weights.download import OFFLINE
from sed_sr.utils.weights.pretrained import (
    MIRROR,
    WeightsMissing,
    cached_by_other_tools,
    find_published,
    locate,
    suggestion,
    verify,
)

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as the hub spells licences
UNLIMITED_WIDTH = 1000  # columns, for a pipe


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m utils.weights",
        description="List, download and verify the pretrained weights that the recipes start from; publish weights.",
        epilog=f"{MIRROR}=https://host/folder is tried first for files of these names. With {OFFLINE[0]}=1 nothing is "
        "downloaded. Files in the caches of torch.hub ($TORCH_HOME), CLIP and huggingface_hub ($HF_HOME) are used "
        "where they are.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    lister = commands.add_parser("list", help="show names, sizes, sources, SHA-256 and which files exist")
    fetcher = commands.add_parser("fetch", help="download missing files")
    fetcher.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help=f"a name in the list; <model>.safetensors of any timm model; {hub.SCHEME}user/repository/file; "
        "all: what the recipes of the paper and the metrics need",
    )
    verifier = commands.add_parser("verify", help="compare files with their published or recorded SHA-256")
    verifier.add_argument("names", nargs="*", metavar="NAME", help="files that must exist (default: all that exist)")
    for command in (lister, fetcher, verifier):
        command.add_argument(
            "--pretrained_root",
            type=Path,
            default=Path("pretrained"),
            metavar="FOLDER",
            help="folder of the weights (default: pretrained)",
        )
    pusher = commands.add_parser("push", help="upload a generator to the Hugging Face hub, with a model card")
    pusher.add_argument("repository", metavar="REPO", help="user/name; created if it does not exist")
    pusher.add_argument("--weights", type=Path, required=True, metavar="FILE", help="generator weights, in any format")
    pusher.add_argument(
        "--scores",
        type=Path,
        metavar="FOLDER",
        help="output folder of test.py with scores of these weights, for the model card (default: the scores of the "
        "last validation, if FILE has them)",
    )
    pusher.add_argument(
        "--license", metavar="ID", help="such as apache-2.0, as the hub spells it (default: the card states none)"
    )
    pusher.add_argument("--private", action="store_true", help="refuse a public repository, and make a new one private")
    pusher.add_argument("--dry_run", type=Path, metavar="FOLDER", help="write the files there, and upload nothing")
    return parser.parse_args()


def main() -> int:
    """Run the command; returns the exit code: 1 if a file is missing or wrong."""
    args = parse_arguments()
    if args.command == "list":
        return list_files(args.pretrained_root)
    if args.command == "fetch":
        return fetch_files(args.names, args.pretrained_root)
    if args.command == "push":
        return push(args)
    return verify_files(args.names, args.pretrained_root)


def list_files(root: Path) -> int:
    """Print tables of all published files; SHA-256 and sources through a pipe only, as terminals are too narrow."""
    console = Console(highlight=False, markup=False)
    full = not console.is_terminal
    if full:
        console.width = UNLIMITED_WIDTH
    for standard, title in (
        (True, "Required by the recipes of the paper and the metrics (`fetch all`)"),
        (False, "For fine-tuning, and other semantic extractors (by name; <model>.safetensors of any timm model)"),
    ):
        console.print(
            _table([file for file in PUBLISHED.values() if file.standard is standard], title, root, full=full)
        )
    if not full:
        console.print("`python -m utils.weights list | cat` shows SHA-256 and sources too.")
    return 0


def _table(files: list[WeightFile], title: str, root: Path, *, full: bool) -> Table:
    columns = (
        Column("file", no_wrap=True),
        Column("MB", justify="right"),
        Column("for", no_wrap=True),
        Column("state", overflow="fold"),
        *(("sha256", "source") if full else ()),
    )
    table = Table(*columns, box=box.SIMPLE, title=title, title_justify="left")
    for file in files:
        size_mb = "?" if file.size_bytes is None else f"{file.size_bytes / 1e6:.1f}"
        origin = (file.sha256 or "unpublished", file.url) if full else ()
        table.add_row(file.name, size_mb, file.purpose, _state(file, root), *origin)
    return table


def _state(file: WeightFile, root: Path) -> str:
    path = root / file.name
    if os.path.isdir(path):
        return "a folder, not a file"
    if os.path.exists(path):
        try:
            if not verify(path):
                return "not verifiable"
        except UserError:
            return "wrong file"
        return "verified" if file.sha256 else "as first downloaded"
    copy = cached_by_other_tools(file, root)
    return "missing" if copy is None else f"verified, in {copy.parent}"


def fetch_files(names: list[str], root: Path) -> int:
    for name in names:
        if name != "all" and not hub.is_address(name) and find_published(name) is None:
            raise UserError(
                f"{name} is not a published file; expected one of {', '.join(PUBLISHED)}, or <model>.safetensors of a "
                f"model in timm.list_pretrained(){suggestion(name)}"
            )
    standard = [file.name for file in PUBLISHED.values() if file.standard]
    wanted = dict.fromkeys(each for name in names for each in (standard if name == "all" else [name]))
    failed = False
    for name in wanted:
        try:
            if hub.is_address(name):
                print(f"{name} is {locate(name, pretrained_root=root)}")
            else:
                print(_verdict(locate(root / name, pretrained_root=root)))
        except UserError as error:  # the other files may still be available
            print(error, file=sys.stderr)
            failed = True
    return int(failed)


def verify_files(names: list[str], root: Path) -> int:
    paths = [root / name for name in names] or _existing(root)
    if not paths:
        print(f"there are no weights in {root}")
    failed = False
    for path in paths:
        try:
            if not os.path.exists(path):
                raise WeightsMissing(f"{path} does not exist")
            print(_verdict(path))
        except UserError as error:
            print(error)
            failed = True
    return int(failed)


def push(args: argparse.Namespace) -> int:
    hub.check_name(args.repository)
    if args.license is not None and not LICENSE_ID.fullmatch(args.license):
        raise UserError(f"--license {args.license} is not the identifier of a licence, such as apache-2.0")
    if args.dry_run is None:
        hub.check_upload(args.repository)
    elif os.path.exists(args.dry_run):
        raise UserError(f"{args.dry_run} exists already; give --dry_run a new folder")
    # here, because they import PyTorch, and `list` should be quick
    from sed_sr.utils.weights.generator_file import open_generator_file
    from sed_sr.utils.weights.model_card import write_repository

    file = open_generator_file(args.weights)
    print(f"{file.path}: {file.about}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.dry_run or Path(temporary)
        write_repository(folder, file, repository=args.repository, license_id=args.license, scores=args.scores)
        if args.license is None and not args.private:
            print("the model card states no licence, so nobody may use the weights; see --license", file=sys.stderr)
        if args.dry_run is not None:
            print(f"{folder} has what would be uploaded to {args.repository}")
        else:
            print(f"uploaded: {hub.upload(folder, args.repository, private=args.private)}")
    return 0


def _existing(root: Path) -> list[Path]:
    """All weights in the folder, and copies of other tools that are used in place of missing ones."""
    here = sorted(root.iterdir()) if root.is_dir() else []
    copies = [cached_by_other_tools(file, root) for file in PUBLISHED.values() if not (root / file.name).exists()]
    return [path for path in (*here, *copies) if path is not None and path.suffix in WEIGHT_SUFFIXES]


def _verdict(path: Path) -> str:
    if not verify(path):
        return f"{path}: no sha256 is known to compare it with"
    published = PUBLISHED.get(path.name)
    if published is None or published.sha256 is None:
        return f"{path}: as recorded at its first download; no published sha256 to compare it with"
    return f"{path}: its sha256 is right"


if __name__ == "__main__":
    run(main)
