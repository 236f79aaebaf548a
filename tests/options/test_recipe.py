"""Reading recipes: files that extend others, overrides, and where a problem is reported."""

from pathlib import Path

import pytest
import yaml

from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.options.schema import Options

REAL = Path(__file__).parents[2] / "options" / "train_rrdb_P+SeD_real.yml"
BASE = {"name": "run", "generator": {"type": "rrdb"}, "discriminator": {"type": "patch"}}


def write(folder: Path, tree: dict, name: str = "recipe.yml") -> Path:
    file = folder / name
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def read(folder: Path, tree: dict, *settings: str) -> Options:
    return load_options(write(folder, tree), [Override.parse(setting) for setting in settings])


def test_child_overrides_parent_key_by_key_and_the_command_line_overrides_both(tmp_path):
    write(tmp_path, {**BASE, "train": {"total_steps": 10, "log_every_steps": 5}}, "parent.yml")
    child = {"extends": "parent.yml", "name": "child", "train": {"total_steps": 20}}
    options = read(tmp_path, child, "seed=7")
    assert (options.name, options.train.total_steps, options.train.log_every_steps) == ("child", 20, 5)
    options = read(tmp_path, child, "train.total_steps=30", "train.total_steps=3e1")
    assert (options.train.total_steps, options.train.log_every_steps) == (30, 5)


def test_mapping_on_the_command_line_changes_only_its_keys(tmp_path):
    tree = {**BASE, "train": {"total_steps": 10, "log_every_steps": 5}}
    train = read(tmp_path, tree, "train={total_steps: 20}").train
    assert (train.total_steps, train.log_every_steps) == (20, 5)


def test_folders_of_a_child_replace_those_of_its_parent_and_a_single_key_adds_to_them(tmp_path):
    parent = write(tmp_path, {"dataset": {"hr": {"a": 1, "b": 2}, "augment": ["flip"]}}, "parent.yml")
    child = {**BASE, "extends": parent.name, "dataset": {"hr": {"c": 0.5}, "lr": "d"}}
    options = read(tmp_path, child)
    assert (options.dataset.hr, options.dataset.augment) == ({"c": 0.5}, ("flip",))
    assert read(tmp_path, child, "dataset.hr={e: 3}").dataset.hr == {"e": 3}
    assert read(tmp_path, child, "dataset.hr=e").dataset.hr == {"e": 1}
    overrides = [Override.parse("dataset.hr={e: 3}"), Override.parse("dataset.hr.f=1")]
    assert load_options(REAL, overrides).dataset.hr == {"e": 3, "f": 1}
    assert overrides[0].value == {"e": 3}


def test_problem_in_a_parent_is_reported_with_the_line_in_the_parent(tmp_path):
    (tmp_path / "parent.yml").write_text("name: run\ngenerator:\n  type: rrdb\n  blocs: 3\n")
    with pytest.raises(UserError, match=r"parent\.yml:4: generator\.blocs .*did you mean blocks\?"):
        read(tmp_path, {"extends": "parent.yml", "discriminator": None})


def test_all_problems_are_reported_together(tmp_path):
    with pytest.raises(UserError) as caught:
        read(tmp_path, {**BASE, "seed": -1, "device": "gpu"}, "train.total_steps=x")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("- a\n- b", "expected keys and values"),
        ("", "name is required"),
        ("name: !!python/object/apply:os.system ['true']", "recipe.yml:1: name is ['true']"),
        ("extends: recipe.yml", "extends itself"),
        ("extends: absent.yml", "does not exist"),
        ("extends: [a, b]", "one option file"),
    ],
)
def test_unusable_file_is_refused_in_a_sentence(tmp_path, text, fragment):
    file = tmp_path / "recipe.yml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_options(file)
    assert fragment in str(caught.value)


def test_similar_name_is_suggested_for_a_missing_file(tmp_path):
    write(tmp_path, BASE, "train_rrdb.yml")
    with pytest.raises(UserError, match=r"train_rrbd\.yml does not exist; did you mean .*train_rrdb\.yml"):
        load_options(tmp_path / "train_rrbd.yml")


@pytest.mark.parametrize("text", ["seed", "=3", "a..b=3", "seed=[1"])
def test_malformed_setting_is_refused(text):
    with pytest.raises(UserError, match="--set"):
        Override.parse(text)


def test_tree_is_read_like_a_file_and_is_not_changed():
    tree = {**BASE, "generator": {"type": "swinir", "depths": [2, 2], "heads": [6, 6]}, "seed": 2}
    options = load_options(tree, [Override.parse("seed=3"), Override.parse("generator.window=4")])
    assert (options.seed, options.generator.window, options.generator.depths) == (3, 4, (2, 2))
    assert (tree["seed"], tree["generator"]) == (2, {"type": "swinir", "depths": [2, 2], "heads": [6, 6]})


def test_problem_in_a_tree_has_no_place_and_one_in_an_argument_names_the_argument():
    with pytest.raises(UserError) as caught:
        load_options({"generator": {"type": "rrdb", "blocs": 3}, "discriminator": None}, [Override.parse("seed=x")])
    assert sorted(line.partition(" is ")[0] for line in str(caught.value).splitlines()) == [
        "--set seed=x: seed", "generator.blocs", "name",
    ]  # fmt: skip
