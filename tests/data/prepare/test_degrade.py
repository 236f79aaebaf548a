"""Benchmarks made by the degradation are found as pairs and follow from the seed."""

import os
import sys

import numpy as np
import pytest
import skimage.data
from PIL import Image

from sed_sr.data.benchmarks import find_benchmark
from sed_sr.data.build import build_training_pairs
from sed_sr.data.degradation.pipeline import degrade_image
from sed_sr.data.images import read_rgb
from sed_sr.data.prepare.degrade import RECIPE, degrade_folder, main
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options


def degrade(hr, rng):
    """Keeps every fourth pixel, and one random number."""
    lr = np.ascontiguousarray(hr[::4, ::4])
    lr[0, 0] = rng.integers(256)
    return lr


def make_benchmark(source, output, *, seed=0):
    return degrade_folder(source, output, degrade, scale=4, seed=seed)


@pytest.fixture
def photographs(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(skimage.data.chelsea()[:90, :131]).save(tmp_path / "photos/cat.png")
    Image.fromarray(skimage.data.coffee()[:80, :120]).save(tmp_path / "photos/cup.bmp")
    return tmp_path / "photos"


def test_result_is_a_benchmark_of_hr_and_its_lr(photographs, tmp_path):
    assert make_benchmark(photographs, tmp_path / "Real", seed=0) == 0
    cat, cup = find_benchmark(tmp_path, "Real", scale=4).images
    assert (cat.name, cup.name) == ("cat", "cup")
    hr, lr = (np.array(Image.open(path)) for path in (cat.hr, cat.lr))
    assert (hr == skimage.data.chelsea()[:88, :128]).all()
    assert (lr[1:] == hr[4::4, ::4]).all()


def test_draws_follow_from_the_seed_and_differ_between_images(photographs, tmp_path):
    corners = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_benchmark(photographs, tmp_path / name, seed=seed)
        images = find_benchmark(tmp_path, name, scale=4).images
        corners[name] = [np.array(Image.open(image.lr))[0, 0, 0] for image in images]
    assert corners["a"] == corners["b"] != corners["c"]
    assert corners["a"][0] != corners["a"][1]


def test_pairs_are_flushed_together_at_the_end_and_not_one_by_one(photographs, tmp_path, monkeypatch):
    output, flushed = tmp_path / "Real", []

    def note(folders):
        flushed.append((folders, len(list(output.rglob("*.png")))))

    monkeypatch.setattr("sed_sr.data.prepare.degrade.flush_file_systems", note)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("a file was flushed by itself"))
    make_benchmark(photographs, output, seed=0)
    assert flushed == [([output], 4)]


def test_unusable_image_is_named_and_the_others_are_degraded(photographs, tmp_path, capsys):
    (photographs / "broken.png").write_bytes(b"nothing")
    Image.fromarray(skimage.data.chelsea()[:40, :200]).save(photographs / "small.png")
    assert make_benchmark(photographs, tmp_path / "Real", seed=0) == 1
    told = capsys.readouterr().err
    assert "broken.png" in told
    assert "small.png is 200x40" in told
    assert len(find_benchmark(tmp_path, "Real", scale=4).images) == 2


def test_output_must_be_a_new_folder_without_an_image_suffix(photographs, tmp_path):
    make_benchmark(photographs, tmp_path / "Real", seed=0)
    for output in (tmp_path / "Real", photographs, photographs / "cat.png", tmp_path / "sheet.png"):
        with pytest.raises(UserError, match="give another --output"):
            make_benchmark(photographs, output, seed=1)
    assert not (tmp_path / "sheet.png").exists()


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["degrade.py", *map(str, arguments)])
    return main()


def test_command_degrades_as_a_recipe_with_its_overrides(photographs, tmp_path, monkeypatch):
    override = "degradation.first.jpeg_quality=[10, 12]"
    given = ("--input", photographs, "--output", tmp_path / "Real", "--seed", 3, "--set", override)
    assert command(monkeypatch, *given) == 0
    options = load_options(RECIPE, [Override.parse(override)])
    degradation = build_training_pairs(options, scale=4).degradation
    for number, image in enumerate(find_benchmark(tmp_path, "Real", scale=4).images):
        lr = degrade_image(degradation, read_rgb(image.hr), np.random.default_rng([3, number]))
        np.testing.assert_array_equal(read_rgb(image.lr), lr)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--seed", "-1"), "--seed is -1"),
        (("--opt", RECIPE.with_name("train_rrdb_P+SeD.yml")), "has no degradation"),
        (("--input", "absent"), "cannot read the image folder absent"),
    ],
)
def test_mistakes_are_user_errors(photographs, tmp_path, monkeypatch, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        command(monkeypatch, "--input", photographs, "--output", tmp_path / "Real", *arguments)
    assert not (tmp_path / "Real").exists()
