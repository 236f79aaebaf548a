"""The option tree: what is refused and how it is said; how files and overrides come together; the paper's recipe."""

from pathlib import Path

import pytest
import yaml

from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.options.schema import Options

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
    """The released configuration: losses, optimiser, schedule, patches, batch."""
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
    assert (options.dataset.lr_patch_px, options.train.total_batch_size) == (64, 32)


def test_unet_recipes_weigh_the_perceptual_loss_ten_times_the_patch_recipes():
    classical = [path for path in RECIPES if "psnr" not in path.stem and not path.stem.endswith("_real")]
    weights = {path.stem: load_options(path).losses.perceptual for path in classical}
    for name, perceptual in weights.items():
        assert perceptual.weight == (1.0 if "_U" in name else 0.1), name


REAL = sorted(path for path in RECIPES if path.stem.startswith("train_") and path.stem.endswith("_real"))
STAGES = {  # train_realesrgan_x4plus: first stage, second stage
    "blur_probability": (1, 0.8),
    "kernel_px": ((7, 21), (7, 21)),
    "sinc_probability": (0.1, 0.1),
    "sigma_px": ((0.2, 3), (0.2, 1.5)),
    "beta_generalized": ((0.5, 4), (0.5, 4)),
    "beta_plateau": ((1, 2), (1, 2)),
    "resize_range": ((0.15, 1.5), (0.3, 1.2)),
    "gaussian_noise_probability": (0.5, 0.5),
    "gaussian_noise_sigma": ((1, 30), (1, 25)),
    "poisson_noise_scale": ((0.05, 3), (0.05, 2.5)),
    "grey_noise_probability": (0.4, 0.4),
    "jpeg_quality": ((30, 95), (30, 95)),
}


@pytest.mark.parametrize("recipe", REAL, ids=lambda path: path.stem)
def test_recipes_of_real_sr_degrade_as_published(recipe):
    options = load_options(recipe)
    degradation = options.degradation
    stages = (degradation.first, degradation.second)
    for key, expected in STAGES.items():
        assert tuple(getattr(stage, key) for stage in stages) == expected, key
    for stage in stages:
        assert list(stage.kernel_kinds.model_dump().values()) == [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    resizes = [list(stage.resize.model_dump().values()) for stage in stages]
    assert resizes == [[0.2, 0.7, 0.1], [0.3, 0.4, 0.3]]
    assert (degradation.final_sinc_probability, degradation.hr_px, degradation.pool_pairs) == (0.8, 400, 180)
    assert degradation.sharpening.model_dump() == {"kernel_px": 51, "weight": 0.5, "threshold": 10}
    assert set(degradation.sharpened_targets) == {"pixel", "perceptual"}
    assert (options.dataset.lr, options.dataset.lr_patch_px, options.train.ema_decay) == (None, 64, 0.999)


def test_recipes_of_real_sr_are_every_pair_of_networks_with_the_published_losses():
    generators, kinds = ("rrdb", "swinir"), {"P": "patch", "U": "unet"}
    expected = {f"train_{g}_{d}{s}_real" for g in generators for d in kinds for s in ("", "+SeD")}
    assert {path.stem for path in REAL} == expected | {f"train_{g}_psnr_real" for g in generators}
    for path in REAL:
        options = load_options(path)
        assert options.generator.type == path.stem.split("_")[1]
        if "psnr" in path.stem:
            assert (options.discriminator, options.losses.perceptual, options.losses.gan) == (None, None, None)
            assert (options.optimizer.learning_rate, options.train.total_steps) == (2e-4, 1_000_000)
        else:
            losses = options.losses
            assert (losses.pixel.weight, losses.perceptual.weight, losses.gan.weight) == (1, 1, 0.1)
            assert options.discriminator.type == kinds[path.stem.split("_")[2][0]]
            assert options.discriminator.fusion == ("cross-attention" if "+SeD" in path.stem else "none")


def test_child_overrides_parent_key_by_key_and_the_command_line_overrides_both(tmp_path):
    write(tmp_path, {**BASE, "train": {"total_steps": 10, "log_every_steps": 5}}, "parent.yml")
    child = {"extends": "parent.yml", "name": "child", "train": {"total_steps": 20}}
    options = read(tmp_path, child, "seed=7")
    assert (options.name, options.train.total_steps, options.train.log_every_steps) == ("child", 20, 5)
    options = read(tmp_path, child, "train.total_steps=30", "train.total_steps=3e1")
    assert (options.train.total_steps, options.train.log_every_steps) == (30, 5)


def test_folders_of_a_child_replace_those_of_its_parent_and_a_single_key_joins_them(tmp_path):
    parent = write(tmp_path, {"dataset": {"hr": {"a": 1, "b": 2}, "augment": False}}, "parent.yml")
    child = {**BASE, "extends": parent.name, "dataset": {"hr": {"c": 0.5}, "lr": "d"}}
    options = read(tmp_path, child)
    assert (options.dataset.hr, options.dataset.augment) == ({"c": 0.5}, False)
    assert read(tmp_path, child, "dataset.hr={e: 3}").dataset.hr == {"e": 3}
    assert read(tmp_path, child, "dataset.hr=e").dataset.hr == {"e": 1}
    real = load_options(REAL[0], [Override.parse("dataset.hr={e: 3}"), Override.parse("dataset.hr.f=1")])
    assert real.dataset.hr == {"e": 3, "f": 1}


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
    "validation.metrics=psnr": ["validation.metrics", "'psnr'", "list"],
    "dataset.hr={a: 1, b: 1}": ["dataset.hr", "2 folders", "dataset.lr"],
    "dataset.hr={a: 0}": ["dataset.hr.a", "0", "greater than 0"],
    "dataset.hr={a: 101}": ["dataset.hr.a", "101", "less than or equal to 100"],
    "dataloader.batch_size=many": [
        "dataloader.batch_size is 'many'; it should be a whole number above 0, auto or null"
    ],
    "train.cuda_graph=yes please": ["train.cuda_graph is 'yes please'; it should be true, false or auto"],
    "train.compile=reduce-overhead": [
        "train.compile is 'reduce-overhead'; it should be true or false; CUDA graphs have an option of their own, "
        "train.cuda_graph"
    ],
    "dataset.lr=null": ["dataset.lr", "degradation is null"],
    "degradation={}": ["degradation.hr_px", "is required"],
    "discriminator.semantic=true": ["discriminator.semantic", "not an option", "fusion"],
    "semantic_extractor.layer=[1]": ["semantic_extractor.layer", "string"],
}


@pytest.mark.parametrize(("setting", "fragments"), MISTAKES.items(), ids=MISTAKES)
def test_mistake_gets_one_sentence_with_the_place_the_value_and_what_is_allowed(tmp_path, setting, fragments):
    with pytest.raises(UserError) as caught:
        read(tmp_path, BASE, setting)
    sentence, *others = str(caught.value).splitlines()
    assert not others or setting == "degradation={}"  # where every key is missing
    for fragment in fragments:
        assert fragment in sentence


MISTAKES_REAL = {
    "degradation.hr_px=100": ["hr_px", "100", "lr_patch_px (64)"],
    "degradation.hr_px=402": ["hr_px", "402", "multiple of 4"],
    "degradation.sharpening=null": ["sharpened_targets", "sharpening, which is null"],
    "degradation.sharpening.kernel_px=50": ["kernel_px", "50", "odd"],
    "degradation.first.kernel_px=[7,20]": ["first.kernel_px", "[7, 20]", "odd"],
    "degradation.second.kernel_px=[21,7]": ["second.kernel_px", "[21, 7]", "smaller one first"],
    "degradation.first.resize.up=0.5": ["first.resize", "1.3", "add up to 1"],
    "degradation.second.kernel_kinds.iso=0": ["second.kernel_kinds", "0.55", "add up to 1"],
    "degradation.first.sigma_px=[3,1]": ["first.sigma_px", "[3, 1]", "lower end"],
    "degradation.first.jpeg_quality=[95,30]": ["first.jpeg_quality", "[95.0, 30.0]", "lower one first"],
    "degradation.first.resize_range=[1.1,1.5]": ["first.resize_range", "1.1", "should hold 1"],
    "degradation.second.beta_plateau=[2,3]": ["second.beta_plateau", "[2.0, 3.0]", "should hold 1"],
    "dataset.lr=train_sub_x4": ["dataset.lr", "train_sub_x4", "set dataset.lr: null"],
    "dataset.hr={}": ["dataset.hr", "at least 1 item"],
}


@pytest.mark.parametrize(("setting", "fragments"), MISTAKES_REAL.items(), ids=MISTAKES_REAL)
def test_mistake_in_a_degradation_gets_one_sentence(setting, fragments):
    with pytest.raises(UserError) as caught:
        load_options(REAL[0], [Override.parse(setting)])
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
