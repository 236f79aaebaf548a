"""The JSON schema allows what the loader accepts, and the commented tree is a recipe of the defaults."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sed_sr.options.describe import SCHEMA_FILE, commented_options, recipe_schema
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import load_options
from sed_sr.options.schema import Options

RECIPES = sorted((Path(__file__).parents[2] / "options").glob("*.yml"))
BASE = {"name": "run", "generator": {"type": "rrdb"}, "discriminator": {"type": "patch"}}
MODELINE = f"# yaml-language-server: $schema={SCHEMA_FILE.name}\n"


SCHEMA = jsonschema.Draft202012Validator(recipe_schema())


def is_allowed(recipe: dict) -> bool:
    return SCHEMA.is_valid(json.loads(json.dumps(recipe)))


def is_read(recipe: dict, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether every value is valid alone; conflicts between values are not part of the schema."""
    with monkeypatch.context() as patch:
        patch.setattr("sed_sr.options.recipe.find_conflicts", lambda options: ())
        try:
            load_options(recipe)
        except UserError:
            return False
    return True


def with_choice(path: tuple[str, ...], value: object) -> dict:
    recipe = json.loads(json.dumps(BASE))
    section = recipe
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value
    return recipe


def places(tree: dict, path: tuple[str, ...] = ()):
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def test_schema_file_is_up_to_date():
    written = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert written == recipe_schema(), "options/schema.json is stale: run `python -m options.describe`"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_names_the_schema_and_conforms_to_it(recipe):
    text = recipe.read_text(encoding="utf-8")
    assert text.startswith(MODELINE)
    assert is_allowed(yaml.safe_load(text))


def test_resolved_options_conform_to_the_schema():
    for recipe in RECIPES:
        assert is_allowed(yaml.safe_load(load_options(recipe).as_yaml()))


def test_every_option_has_a_description_and_a_default_or_is_required():
    schema = Options.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for key, option in section["properties"].items():
            assert option.get("description") or "$ref" in option, key
            assert "default" in option or key in section["required"], key
        assert section["description"]


MISTAKES = {
    "train.total_stepz": 3,
    "trian.total_steps": 3,
    "train.total_steps": 0,
    "train.log_every_steps": 2.5,
    "train.save_every_steps": True,
    "train.keep_states": "3",
    "train.ema_decay": 1,
    "train": 5,
    "losses": None,
    "losses.pixel.weight": 0,
    "losses.perceptual.layers": {},
    "losses.perceptual.layers.conv1_2": -1,
    "generator": None,
    "generator.type": "swinirr",
    "generator.window": 8,
    "generator.features": 2**63,
    "discriminator.type": "patchgan",
    "discriminator.fusion": True,
    "semantic_extractor.layer": 1.5,
    "dataloader.batch_size": 0,
    "dataloader.num_workers": None,
    "dataset.hr": {"a": 0.0},
    "dataset.lr": 5,
    "degradation.first.sigma_px": [0.2],
    "degradation.pool_pairs": -1,
    "optimizer.betas": [0.9],
    "optimizer.milestones": 5,
    "optimizer.clip_grad_norm": -1.0,
    "name": "../elsewhere",
    "seed": -1,
    "device": "gpu",
    "paths.data_root": 3,
    "validation.benchmarks": "Set5",
    "validation.metrics": [],
}


@pytest.mark.parametrize("key", MISTAKES)
def test_mistake_is_refused_by_the_schema_and_by_the_loader(key, monkeypatch):
    recipe = with_choice(tuple(key.split(".")), MISTAKES[key])
    assert not is_allowed(recipe)
    assert not is_read(recipe, monkeypatch)


KEYS = sorted(set(places(yaml.safe_load(load_options(BASE).as_yaml()))))
WORDS = sorted(
    {word for path in KEYS for word in path} | {"vanilla", "unet", "swinir", "bf16", "cuda", "psnr", "cosine"}
)
NUMBERS = st.integers(-2, 2**64) | st.integers(-1, 10) | st.floats(-1, 2) | st.sampled_from([3e5, 1.0, -0.0, 2.0**63])
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from(WORDS)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.lists(NUMBERS, min_size=2, max_size=2)
VALUES |= st.dictionaries(st.sampled_from(WORDS), SCALARS, max_size=2)


@settings(max_examples=400, deadline=None)
@given(path=st.sampled_from(KEYS), value=VALUES, key=st.none() | st.sampled_from(WORDS))
@example(path=("train", "total_steps"), value=3e5, key=None)
@example(path=("generator", "type"), value="swinir", key=None)
@example(path=("dataset", "hr"), value={}, key=None)
@example(path=("dataset", "hr"), value={"train": 101}, key=None)
@example(path=("dataset", "hr"), value={"train": 100}, key=None)
@example(path=("dataset", "hr"), value="train", key=None)
@example(path=("generator", "type"), value="swinir", key="type")
def test_schema_and_loader_agree_on_any_value(path, value, key):
    """A random value for a random option, or under another key."""
    recipe = with_choice((*path[:-1], key or path[-1]), value)
    with pytest.MonkeyPatch.context() as patch:
        read = is_read(recipe, patch)
    # The schema requires no key, since a recipe may extend another.
    networks = recipe["generator"], recipe["discriminator"]
    complete = all("type" in network for network in networks if isinstance(network, dict))
    complete = complete and not isinstance(recipe.get("degradation"), dict)  # never generated with all of its keys
    assert read == (is_allowed(recipe) and complete)


def test_commented_tree_is_a_recipe_of_the_defaults():
    tree = yaml.safe_load(commented_options())
    assert tree["name"] is None
    tree["name"], tree["discriminator"]["type"] = BASE["name"], "patch"
    assert load_options(tree) == load_options(BASE)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_commented_tree_fits_into_the_width(width):
    assert max(map(len, commented_options(width=width).splitlines())) <= width


def test_commented_tree_describes_every_option():
    schema, text = Options.model_json_schema(), " ".join(commented_options(width=10_000).split())
    for section in schema["$defs"].values():
        for key, option in section["properties"].items():
            assert f"{option['description']} [" in text
            assert f" {key}:" in text


@pytest.mark.parametrize("path", [path for path in KEYS if not {"layers", "hr"} & set(path[:-1])], ids=".".join)
def test_commented_part_has_only_the_key(path):
    part = yaml.safe_load(commented_options(".".join(path)))
    whole = yaml.safe_load(commented_options())
    for key in path:
        assert list(part) == [key]
        part, whole = part[key], whole[key]
    assert part == whole


def test_all_generators_are_shown():
    assert yaml.safe_load(commented_options("generator.window")) == {"generator": {"window": 8}}
    text = commented_options("generator")
    uncommented = "\n".join(line.replace("  # ", "  ", 1) for line in text.splitlines() if "  # " in line)
    assert {"type: swinir", "embed_dim: 180"} <= {line.strip() for line in uncommented.splitlines()}


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("losses.gann", r"gann is not an option \(did you mean gan\?\); allowed here: pixel, perceptual, .*gan"),
        ("trian", r"did you mean train\?"),
        ("generator.windw", r"did you mean window\?"),
        ("train.total_steps.x", "x is not an option: total_steps is one"),
        ("train.", "is not an option"),
    ],
)
def test_wrong_key_gets_one_sentence(key, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        commented_options(key)
    assert "\n" not in str(caught.value)
