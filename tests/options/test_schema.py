"""The option tree: what is refused and how it is said; how files and overrides come together; the paper's recipe."""

from pathlib import Path

import pytest
import yaml

from options.schema import Options, Override, load_options
from utils.errors import UserError

RECIPES = sorted((Path(__file__).parents[2] / "options").glob("*.yml"))
BASE = {"name": "run", "generator": {"type": "rrdb"}, "discriminator": {"type": "patch"}}


def write(folder: Path, tree: dict, name: str = "recipe.yml") -> Path:
    file = folder / name
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def read(folder: Path, tree: dict, *settings: str) -> Options:
    return load_options(write(folder, tree), [Override.parse(setting) for setting in settings])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_is_called_like_its_file(recipe):
    assert load_options(recipe).name == recipe.stem


def test_defaults_are_the_published_recipe(tmp_path):
    """FACTS of the released configuration: losses, optimiser, schedule, patches, batch."""
    options = read(tmp_path, BASE)
    assert (options.losses.pixel.weight, options.losses.perceptual.weight, options.losses.gan.weight) == (1, 0.1, 0.01)
    assert options.losses.gan.type == "vanilla"
    assert options.losses.perceptual.layers == {
        "conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1, "conv4_4": 1, "conv5_4": 1,
    }  # fmt: skip
    assert (options.optimizer.learning_rate, options.optimizer.discriminator_learning_rate) == (1e-4, 1e-4)
    assert options.optimizer.betas == (0.9, 0.99)
    assert (options.optimizer.milestones, options.optimizer.decay) == ((100_000, 200_000), 0.5)
    assert (options.train.total_steps, options.train.ema_decay, options.seed) == (300_000, None, 1)
    assert (options.dataset.lr_patch_px, options.dataloader.batch_size) == (64, 8)


def test_unet_recipes_weigh_the_perceptual_loss_ten_times_the_patch_recipes():
    weights = {path.stem: load_options(path).losses.perceptual for path in RECIPES if "psnr" not in path.stem}
    for name, perceptual in weights.items():
        assert perceptual.weight == (1.0 if "_U" in name else 0.1), name


def test_child_overrides_parent_key_by_key_and_the_command_line_overrides_both(tmp_path):
    write(tmp_path, {**BASE, "train": {"total_steps": 10, "log_every_steps": 5}}, "parent.yml")
    child = {"extends": "parent.yml", "name": "child", "train": {"total_steps": 20}}
    options = read(tmp_path, child, "seed=7")
    assert (options.name, options.train.total_steps, options.train.log_every_steps) == ("child", 20, 5)
    options = read(tmp_path, child, "train.total_steps=30", "train.total_steps=3e1")
    assert (options.train.total_steps, options.train.log_every_steps) == (30, 5)


def test_resolved_tree_reads_back_equal(tmp_path):
    for recipe in RECIPES:
        options = load_options(recipe)
        file = tmp_path / "resolved.yml"
        file.write_text(options.as_yaml())
        assert load_options(file) == options


def test_scientific_notation_is_a_number(tmp_path):
    options = read(tmp_path, BASE, "optimizer.learning_rate=1e-3", "train.total_steps=3e5")
    assert (options.optimizer.learning_rate, options.train.total_steps) == (0.001, 300_000)


MISTAKES = {
    "train.total_stepz=3": ["train.total_stepz", "did you mean total_steps?"],
    "trian.total_steps=3": ["trian", "did you mean train?"],
    "train.total_steps=many": ["train.total_steps", "'many'", "integer"],
    "train.total_steps=true": ["train.total_steps", "true", "integer"],
    "train.total_steps=2.5": ["train.total_steps", "2.5", "integer"],
    "train.total_steps=0": ["train.total_steps", "0", "greater than or equal to 1"],
    "train=5": ["train", "5", "expected keys and values"],
    "generator.type=swinirr": ["generator.type", "did you mean swinir?", "allowed: rrdb, swinir"],
    "generator.window=8": ["generator.window", "not an option", "features, blocks, growth"],
    "discriminator.type=patchgan": ["discriminator.type", "'patchgan'", "allowed: patch, unet"],
    "name=../elsewhere": ["name", "'../elsewhere'", "letters, digits"],
    "losses.gan=null": ["losses.gan", "discriminator"],
    "discriminator=null": ["losses.gan", "discriminator is null"],
    "losses.perceptual.layers={}": ["losses.perceptual.layers", "at least 1 item"],
    "losses.pixel.weight=.nan": ["losses.pixel.weight", "finite"],
    "dataset.lr_patch_px=30": ["dataset.lr_patch_px", "30", "multiple of 4"],
    "optimizer.milestones=[5,5]": ["optimizer.milestones", "[5, 5]"],
    "optimizer.betas=[0.9]": ["optimizer.betas", "[0.9]"],
    "paths.data_root=3": ["paths.data_root", "3", "path"],
    "validation.benchmarks=Set5": ["validation.benchmarks", "'Set5'", "list"],
    "validation.metrics=[psnrr]": ["validation.metrics", "did you mean psnr?"],
}


@pytest.mark.parametrize(("setting", "fragments"), MISTAKES.items(), ids=MISTAKES)
def test_mistake_gets_one_sentence_with_the_place_the_value_and_what_is_allowed(tmp_path, setting, fragments):
    with pytest.raises(UserError) as caught:
        read(tmp_path, BASE, setting)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for fragment in fragments:
        assert fragment in sentence


def test_mistake_in_a_file_is_told_with_its_line_in_the_file_that_made_it(tmp_path):
    (tmp_path / "parent.yml").write_text("name: run\ngenerator:\n  type: rrdb\n  blocs: 3\n")
    with pytest.raises(UserError, match=r"parent\.yml:4: generator\.blocs .*did you mean blocks\?"):
        read(tmp_path, {"extends": "parent.yml", "discriminator": None})


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(UserError) as caught:
        read(tmp_path, {**BASE, "seed": -1, "device": "gpu"}, "train.total_steps=x")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("name: [a", "not valid YAML"),
        ("- a\n- b", "expected keys and values"),
        ("name: a\nname: b", "given twice"),
        ("name: !!python/object/apply:os.system ['true']", "recipe.yml:1"),
        ("name: &x [*x]", "not valid YAML"),
        ("", "name is required"),
        ("extends: recipe.yml", "extends itself"),
        ("extends: absent.yml", "does not exist"),
        ("extends: [a, b]", "one option file"),
        ("seed: 2026-13-45", "recipe.yml:1"),
        ("\x00", "not valid YAML"),
    ],
)
def test_broken_file_is_refused_with_a_sentence(tmp_path, text, fragment):
    file = tmp_path / "recipe.yml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_options(file)
    assert fragment in str(caught.value)


def test_missing_file_suggests_the_one_that_was_meant(tmp_path):
    write(tmp_path, BASE, "train_rrdb.yml")
    with pytest.raises(UserError, match=r"train_rrbd\.yml does not exist; did you mean .*train_rrdb\.yml"):
        load_options(tmp_path / "train_rrbd.yml")


@pytest.mark.parametrize("text", ["seed", "=3", "a..b=3", "seed=[1"])
def test_malformed_setting_is_refused(text):
    with pytest.raises(UserError, match="--set"):
        Override.parse(text)


def test_tree_stands_for_a_file_with_overrides_on_top_and_stays_as_it_was():
    tree = {**BASE, "generator": {"type": "swinir", "depths": [2, 2], "heads": [6, 6]}, "seed": 2}
    options = load_options(tree, [Override.parse("seed=3"), Override.parse("generator.window=4")])
    assert (options.seed, options.generator.window, options.generator.depths) == (3, 4, (2, 2))
    assert (tree["seed"], tree["generator"]) == (2, {"type": "swinir", "depths": [2, 2], "heads": [6, 6]})


def test_mistake_in_a_tree_is_told_without_a_file_and_that_of_an_argument_with_it():
    with pytest.raises(UserError) as caught:
        load_options({"generator": {"type": "rrdb", "blocs": 3}, "discriminator": None}, [Override.parse("seed=x")])
    assert sorted(line.partition(" is ")[0] for line in str(caught.value).splitlines()) == [
        "--set seed=x: seed", "generator.blocs", "name",
    ]  # fmt: skip


def test_options_cannot_be_changed(tmp_path):
    options = read(tmp_path, BASE)
    with pytest.raises(ValueError, match="frozen"):
        options.train.total_steps = 5
