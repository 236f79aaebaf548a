"""The command line that `train.py` and `test.py` share: an option file and what overrides it."""

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from sed_sr.options.describe import commented_options
from sed_sr.options.recipe import Override, load_options
from sed_sr.options.schema import Options

FOLDER_FLAGS = {"data_root": "the training set", "data_test_root": "the benchmarks", "out_root": "the runs"}


class _HelpOptions(argparse.Action):
    """Shows the options, or those of one key, and exits as --help does, whatever else was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        console = Console()
        text = Text(commented_options(values, width=min(console.width, 120)).rstrip())
        text.highlight_regex(r"(?m)^ *#.*$", "dim")
        text.highlight_regex(r"(?m)^ *\w+:", "bold")
        console.print(text, soft_wrap=True)
        parser.exit()


def option_parser(description: str, *, folders: tuple[str, ...], opt_required: bool = True) -> argparse.ArgumentParser:
    """A parser with --opt, --set, --help-options and flags for these folders of `paths`."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument(
        "--help-options", nargs="?", metavar="KEY", action=_HelpOptions, help="show every option, or those of a key"
    )
    parser.add_argument(
        "--opt", required=opt_required, metavar="FILE", help="recipe, such as options/train_rrdb_P+SeD.yml"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one option, such as train.total_steps=1000; any number of times",
    )
    for folder in folders:
        parser.add_argument(f"--{folder}", metavar="FOLDER", help=f"folder of {FOLDER_FLAGS[folder]} (paths.{folder})")
    return parser


def options_from(arguments: argparse.Namespace, *more: Override, default: dict[str, Any] | None = None) -> Options:
    """The option tree that the arguments ask for. Raises UserError where something in it is wrong.

    Args:
        more: choices of further arguments, which override what --set says.
        default: the tree that stands for the recipe where --opt is optional and was not given.
    """
    overrides = [Override.parse(text) for text in arguments.set]
    for folder in FOLDER_FLAGS:
        value = getattr(arguments, folder, None)
        if value is not None:
            overrides.append(Override(f"paths.{folder}", value, f"--{folder} {value}"))
    return load_options(default if arguments.opt is None else arguments.opt, [*overrides, *more])
