"""The grid of extractor x layer x fusion: its recipes, and the script that trains a grid and gathers one table."""

import importlib.util
import json
import os
import signal
import sys
import threading
import time
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from sed_sr.models.build import build_discriminator, build_extractor
from sed_sr.models.semantic_extractor import SemanticExtractor
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "options/ablation").glob("*.yml"))
LAYERS = {
    "clip/RN50": ("layer2", "layer3", "layer4"),
    "clip/ViT-B-16": ("blocks.5", "blocks.11"),
    "timm/convnext_tiny.in12k_ft_in1k": ("stages.1", "stages.2", "stages.3"),
    "timm/resnet50.tv_in1k": ("layer2", "layer3", "layer4"),
    "timm/vgg19.tv_in1k": ("8", "16"),
    "timm/vit_base_patch16_224.augreg_in21k": ("blocks.5", "blocks.11"),
    "timm/vit_small_patch14_dinov2.lvd142m": ("blocks.5", "blocks.11"),
}
FUSIONS = ("concatenation", "cross-attention")
PLAIN = "RRDB_P_none"


def name_of(model: str, layer: str, fusion: str) -> str:
    """What a recipe is called; a layer in digits is a stride."""
    return f"RRDB_P_{model.replace('/', '-')}_{'stride' * layer.isdigit()}{layer}_{fusion}"


def test_recipes_are_the_whole_product_and_the_plain_baseline():
    product = {
        name_of(model, layer, fusion) for model, layers in LAYERS.items() for layer in layers for fusion in FUSIONS
    }
    assert {recipe.stem for recipe in RECIPES} == product | {PLAIN}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_is_that_of_the_paper_but_for_what_its_name_says(recipe):
    options = load_options(recipe)
    paper = load_options(ROOT / f"options/train_rrdb_{'P' if recipe.stem == PLAIN else 'P+SeD'}.yml")
    chosen, fusion = options.semantic_extractor, options.discriminator.fusion
    assert options.name == recipe.stem
    assert recipe.stem == (PLAIN if fusion == "none" else name_of(chosen.model, chosen.layer, fusion))
    varied = {
        "name": True,
        "discriminator": {"fusion"},
        "semantic_extractor": {"model", "layer"},
        "test": {"paper_row"},
    }
    assert options.model_dump(exclude=varied) == paper.model_dump(exclude=varied)
    of_the_paper = fusion == "none" or (chosen.model, chosen.layer, fusion) == (
        "clip/RN50",
        "layer3",
        "cross-attention",
    )
    assert options.test.paper_row == (paper.test.paper_row if of_the_paper else None)


@cache
def extractor_of(model: str, layer: str) -> SemanticExtractor:
    with torch.device("meta"):  # shapes without numbers
        return SemanticExtractor(model=model, layer=layer)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_discriminator_fits_the_semantic_maps_of_its_extractor(recipe, monkeypatch):
    monkeypatch.setattr("sed_sr.models.build.SemanticExtractor", lambda model, layer, **_: extractor_of(model, layer))
    options = load_options(recipe, [Override("semantic_extractor.weights", "random", "")])
    with torch.device("meta"):
        extractor = build_extractor(options, None)
        discriminator = build_discriminator(options, extractor)
        image = torch.empty(2, 3, 64, 64)
        logits = discriminator(image, None if extractor is None else extractor(image))
    assert logits.shape == (2, 1, 6, 6)


def write_recipes(workshop: Path) -> list[str]:
    """A run of two steps, and one that cannot start: its extractor's weights are nowhere."""
    short = {"train": {"total_steps": 2}, "validation": {"benchmarks": []}}
    for name, weights in (("trained", "random"), ("lost", "nowhere.pt")):
        recipe = {"extends": "rrdb_P+SeD.yml", "name": name, "semantic_extractor": {"weights": weights}, **short}
        (workshop / f"{name}.yml").write_text(yaml.safe_dump(recipe))
    return ["lost.yml", "trained.yml"]


@pytest.fixture
def ablation() -> ModuleType:
    """The script as a module."""
    specification = importlib.util.spec_from_file_location("ablation", ROOT / "benchmarks/ablation.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_commands_of_the_grid_run_in_processes_that_end_with_their_exit_codes(ablation, capfd):
    assert ablation.command("-c", "print('hello'); raise SystemExit(3)") == 3
    assert capfd.readouterr().out.endswith("\nhello\n")


CHILD = """
import signal, sys, time
def save(*_):
    open("terminated", "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, save)
open("ready", "w").close()
time.sleep(float(sys.argv[1]))
open("ended", "w").close()
"""


@pytest.mark.parametrize(
    ("number", "seconds", "left"), [(signal.SIGTERM, 60, "terminated"), (signal.SIGINT, 2, "ended")], ids=str
)
def test_interrupted_grid_waits_until_its_command_has_stopped(ablation, tmp_path, monkeypatch, number, seconds, left):
    """SIGTERM reaches the grid alone and is passed on; Ctrl-C reaches both, and a second signal would be too much."""
    monkeypatch.chdir(tmp_path)

    def interrupt() -> None:
        while not Path("ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for commands in the background
    thread, before = threading.Thread(target=interrupt), signal.getsignal(signal.SIGTERM)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ablation.command("-c", CHILD, seconds)
    thread.join()
    assert {path.name for path in tmp_path.iterdir()} == {"ready", left}
    assert signal.getsignal(signal.SIGTERM) is before


def test_script_of_the_grid_refuses_two_runs_of_one_name(workshop, command):
    refused = command("benchmarks/ablation.py", "rrdb_P.yml", "./rrdb_P.yml", "--output", "grid", cwd=workshop)
    assert refused.returncode == 2
    assert "each run needs a name of its own" in refused.stderr


def test_grid_goes_on_after_a_failure_and_leaves_finished_runs_alone(workshop, command, ablation, monkeypatch, capsys):
    arguments = [*write_recipes(workshop), "--benchmarks", "Photos", "--metrics", "psnr", "ssim", "--output", "grid"]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *arguments])
    monkeypatch.chdir(workshop)
    done = []

    def call(*words: object) -> int:
        done.append(command(*words, cwd=workshop))
        return done[-1].returncode

    monkeypatch.setattr(ablation, "command", call)
    assert ablation.main() == 1
    assert [each.returncode for each in done] == [2, 0, 0]
    assert "nowhere.pt" in done[0].stderr
    assert capsys.readouterr().err == "not trained to its end: lost\n"

    table = (workshop / "grid/table.md").read_text().splitlines()
    header, _, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    seen = {"recipe": "trained", "extractor": "clip/RN50", "layer": "16", "fusion": "cross-attention"}
    seen |= {"channels": "1024", "stride": "16"}
    (results,) = json.loads((workshop / "grid/scores_of_1/results.json").read_text())["weights"]
    means = results["benchmarks"]["Photos"]["mean"]
    steps = [json.loads(line) for line in (workshop / "grid/trained/metrics.jsonl").read_text().splitlines()]
    step_s = sum(2 / step["images_per_s"] for step in steps if step["kind"] == "train") / 2  # 2 steps of 2 pairs
    expected = {**seen, "s/step": f"{step_s:.3g}", "Photos PSNR-Y": f"{means['psnr']:.4g}"}
    assert dict(zip(header, row, strict=True)) == {**expected, "Photos SSIM-Y": f"{means['ssim']:.4g}"}

    commands = []
    monkeypatch.setattr(ablation, "command", lambda *words: commands.append([Path(word).name for word in words]) or 2)
    with pytest.raises(UserError, match=r"test\.py ended with exit code 2"):
        ablation.main()
    assert [words[:3] for words in commands] == [
        ["train.py", "--opt", "lost.yml"],
        ["test.py", "--weights", "generator_000000002.pth"],
    ]
