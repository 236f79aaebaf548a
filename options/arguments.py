"""The command-line arguments that `train.py` and `test.py` share: a recipe, overrides, help with options.

It imports neither torch nor NumPy, so that `--help` and a mistake in an option take a fraction of a second.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from sed_sr.options.describe import commented_options
from sed_sr.options.recipe import Override, load_options
from sed_sr.options.schema import Options

FOLDER_FLAGS = {"data_root": "training set", "data_test_root": "benchmarks", "out_root": "runs"}


class _HelpOptions(argparse.Action):
    """Prints all options, or those of one key, and exits like --help, without requiring other arguments."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        assert values is None or isinstance(values, str)  # nargs is "?"
        console = Console()
        text = Text(commented_options(values, width=min(console.width, 120)).rstrip())
        text.highlight_regex(r"(?m)^ *#.*$", "dim")
        text.highlight_regex(r"(?m)^ *\w+:", "bold")
        console.print(text, soft_wrap=True)
        parser.exit()


def option_parser(
    description: str | None, *, folders: tuple[str, ...], opt_required: bool = True
) -> argparse.ArgumentParser:
    """A parser with --opt, --set, --help-options, and a flag for each of these folders of `paths`."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument(
        "--help-options",
        nargs="?",
        metavar="KEY",
        action=_HelpOptions,
        help="show all options, or those of a key such as losses.gan",
    )
    parser.add_argument(
        "--opt", required=opt_required, metavar="FILE", help="recipe, such as options/train_rrdb_P+SeD.yml"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override an option, such as train.total_steps=1000; can be repeated",
    )
    for folder in folders:
        parser.add_argument(
            f"--{folder}", metavar="FOLDER", help=f"folder of the {FOLDER_FLAGS[folder]} (paths.{folder})"
        )
    return parser


def options_from(arguments: argparse.Namespace, *more: Override, default: dict[str, Any] | None = None) -> Options:
    """The options for parsed arguments. Raises UserError if one is wrong.

    Args:
        more: overrides by other arguments of the script, which win over --set.
        default: the tree used in place of a recipe if --opt is optional and was not given.
    """
    overrides = [Override.parse(text) for text in arguments.set]
    for folder in FOLDER_FLAGS:
        value = getattr(arguments, folder, None)
        if value is not None:
            overrides.append(Override(f"paths.{folder}", value, f"--{folder} {value}"))
    recipe = default if arguments.opt is None else arguments.opt
    assert recipe is not None, "an optional --opt needs a default"
    return load_options(recipe, [*overrides, *more])
