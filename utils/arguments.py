"""The command line that `train.py` and `test.py` share: an option file and what overrides it."""

import argparse

from options.schema import Options, Override, load_options

FOLDER_FLAGS = {"data_root": "the training set", "data_test_root": "the benchmarks", "out_root": "the runs"}


def option_parser(description: str, *, folders: tuple[str, ...]) -> argparse.ArgumentParser:
    """A parser with --opt, --set and flags for these folders of `paths`."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--opt", required=True, metavar="FILE", help="recipe, such as options/train_rrdb_P+SeD.yml")
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


def options_from(arguments: argparse.Namespace, *more: Override) -> Options:
    """The option tree that the arguments ask for. Raises UserError where something in it is wrong."""
    overrides = [Override.parse(text) for text in arguments.set]
    for folder in FOLDER_FLAGS:
        value = getattr(arguments, folder, None)
        if value is not None:
            overrides.append(Override(f"paths.{folder}", value, f"--{folder} {value}"))
    return load_options(arguments.opt, [*overrides, *more])
