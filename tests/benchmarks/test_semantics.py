"""The experiment about semantics: what its variants have in common, what differs, and its table."""

import json
import sys

import numpy as np
import pytest
import skimage.data
import torch

from benchmarks import semantics
from benchmarks.semantics import ANOTHER_IMAGE, PLANS, SED, START, VARIANTS, Experiment, OfAnotherImage, format_table
from sed_sr.data.images import write_image
from sed_sr.data.tensors import to_tensor

SIDE_PX = 160
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight details of photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = getattr(skimage.data, name)()
        for side in (0, 1):
            detail = photo[100 : 100 + SIDE_PX, side * SIDE_PX : (side + 1) * SIDE_PX]
            write_image(folder / f"{name}_{side}.png", detail)
    return folder


@pytest.fixture
def experiment(tmp_path):
    rng = np.random.default_rng(0)
    images = [to_tensor(rng.integers(256, size=(SIDE_PX, SIDE_PX, 3), dtype=np.uint8)) for _ in range(4)]
    return Experiment(PLANS["quick"], images[1:], images[:1], device=CPU, output=tmp_path, settings=[])


def test_every_variant_is_trained_with_every_seed_and_the_same_command_continues(photos, tmp_path, monkeypatch, capsys):
    command = ["semantics.py", "--plan", "quick", "--images", str(photos), "--output", str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--seeds", "2"])
    assert semantics.main() == 0
    before = (tmp_path / "runs.jsonl").read_text()
    monkeypatch.setattr(sys, "argv", command)
    assert semantics.main() == 0
    kept = (tmp_path / "runs.jsonl").read_text()
    assert kept.startswith(before)
    runs = [json.loads(line) for line in kept.splitlines()]
    expected = [(START, 0), *((variant, seed) for seed in (2, 1) for variant in VARIANTS)]
    assert [(run["variant"], run["seed"]) for run in runs] == expected
    assert all(len(values) == 2 for run in runs for values in run["scores"].values())  # of eight photographs
    assert (tmp_path / "comparison.png").exists()
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out


def test_variants_of_a_seed_get_the_same_batches_and_seeds_differ(experiment):
    """Each batch has crops of different photographs."""

    def lr(variant, seed):
        return torch.stack([batch.lr for batch in experiment.batches(experiment.options(variant, seed), seed)])

    first = lr("P", 1)
    assert all(torch.equal(lr(variant, 1), first) for variant in VARIANTS)
    assert not torch.equal(lr("P", 2), first)


def test_variants_differ_in_the_fusion_only(experiment):
    trees = {name: experiment.options(name, 1).model_dump() for name in VARIANTS}
    fusions = {name: tree["discriminator"].pop("fusion") for name, tree in trees.items()}
    assert fusions == VARIANTS
    assert all(tree == trees[SED] for tree in trees.values())


def test_control_has_the_semantics_of_another_image():
    images = torch.rand(3, 3, 4, 4)
    found = OfAnotherImage(torch.nn.Identity())(images)
    for i in range(3):
        assert not torch.equal(found[i], images[i])
        assert any(torch.equal(found[i], image) for image in images)


def test_control_is_trained_with_them(experiment, monkeypatch):
    """Its last step differs from that of P+SeD, and would not without the exchange."""

    def measured(variant):
        return experiment.train(variant, 1)[1]

    generator, _ = experiment.train(START, 0)
    semantics.checkpoint.save(generator.state_dict(), experiment.weights(START, 0))
    sed, control = measured(SED), measured(ANOTHER_IMAGE)
    assert control != sed  # by rounding: at first, semantics hardly change the logits
    monkeypatch.setattr(semantics, "OfAnotherImage", lambda extractor: extractor)
    assert measured(ANOTHER_IMAGE) == sed


def test_table_has_means_deviations_and_paired_intervals():
    rng = np.random.default_rng(0)
    easy = rng.normal(size=8)  # of each photograph
    scores = {score: list(easy + 20) for score in semantics.SCORES}
    runs = [{"variant": START, "seed": 0, "measured": {}, "scores": scores}]
    for seed in (1, 2):
        for number, variant in enumerate(VARIANTS):
            values = list(easy + 20 + number + 0.5 * seed)
            measured = {semantics.SENSITIVITY: 0.1 * seed} if variant == SED else {}
            scores = dict.fromkeys(semantics.SCORES, values)
            runs.append({"variant": variant, "seed": seed, "measured": measured, "scores": scores})
    rows = [line.split(" | ") for line in format_table(runs, PLANS["quick"]).splitlines() if " | " in line]
    lines = {name.strip("| "): cells for name, *cells in rows}
    mean = easy.mean() + 20 + 0.75
    assert lines["P"][0] == f"{mean:.2f} ± {np.std([0.5, 1.0], ddof=1):.2f}"
    assert lines["P"][4] == "+1.00 [+1.00, +1.00]"  # P+SeD is better by 1 in every photograph
    assert lines[ANOTHER_IMAGE][4] == "-1.00 [-1.00, -1.00]"
    assert lines[SED][3:5] == ["15 %", ""]
