"""The shared arguments of train.py and test.py: a recipe or a default tree, overrides, help with options."""

import re
import subprocess
import sys

import pytest
import yaml

from sed_sr.options.arguments import option_parser, options_from
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override

BASE = {"name": "run", "generator": {"type": "rrdb"}, "discriminator": None, "losses": {"gan": None}}
FOLDERS = ("data_root", "out_root")


def parse(*arguments, opt_required=False):
    return option_parser("A script.", folders=FOLDERS, opt_required=opt_required).parse_args(arguments)


def test_further_arguments_win_over_set_and_set_wins_over_the_file(tmp_path):
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump({**BASE, "seed": 2, "paths": {"out_root": "a"}}))
    arguments = parse("--opt", str(tmp_path / "recipe.yml"), "--set", "seed=3", "--set", "test.weights=[x]",
                      "--set", "paths.out_root=b", "--out_root", "c")  # fmt: skip
    options = options_from(arguments, Override("test.weights", ("y",), "--weights y"))
    assert (options.seed, options.paths.out_root.name, options.test.weights) == (3, "c", ("y",))


def test_default_tree_is_used_only_without_a_file(tmp_path):
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump({**BASE, "name": "file"}))
    default = {**BASE, "name": "default", "seed": 9}
    options = options_from(parse("--set", "train.total_steps=7"), default=default)
    assert (options.name, options.seed, options.train.total_steps) == ("default", 9, 7)
    options = options_from(parse("--opt", str(tmp_path / "recipe.yml")), default=default)
    assert (options.name, options.seed) == ("file", 1)


def test_file_is_required_unless_it_is_optional(capsys):
    with pytest.raises(SystemExit) as ending:
        parse(opt_required=True)
    assert ending.value.code == 2
    assert "--opt" in capsys.readouterr().err


def test_help_with_options_needs_no_file_and_is_plain_text_of_80_columns_in_a_pipe(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    with pytest.raises(SystemExit) as ending:
        parse("--help-options", opt_required=True)
    assert ending.value.code == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert yaml.safe_load(text)["train"]["total_steps"] == 300_000


def test_help_with_a_key_shows_only_that_part(capsys):
    with pytest.raises(SystemExit) as ending:
        parse("--help-options", "losses.gan.weight")
    assert ending.value.code == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == {"losses": {"gan": {"weight": 0.01}}}
    assert re.search(r"# factor in the generator's objective.*\n *#.*\[number above 0\]", text)


def test_help_with_a_wrong_key_is_one_sentence():
    with pytest.raises(UserError, match=r"gann is not an option \(did you mean gan\?\)"):
        parse("--help-options", "losses.gann")


def test_help_and_option_errors_do_not_wait_for_slow_imports():
    code = "import sys, sed_sr.options.arguments, sed_sr.data.files; print({'torch', 'numpy', 'cv2'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
