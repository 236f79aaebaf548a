"""The demo deletes no files of others, tests on what it did not train on, and uses the real weights that it has."""

from pathlib import Path

import pytest

from examples import demo
from examples.demo import choose_semantics, create_output_folder, write_photos
from sed_sr.data.images import read_rgb
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.utils.evaluation.metrics import metric_weights
from sed_sr.utils.training.frozen_weights import load_frozen_states, pretrained_weights

ROOT = Path(__file__).parents[2]


def test_folder_with_other_content_is_refused_and_kept(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="was not written by the demo"):
        create_output_folder(tmp_path)
    assert (tmp_path / "results" / "mine.txt").read_text() == "mine"


def test_output_of_an_earlier_demo_is_deleted(tmp_path):
    create_output_folder(tmp_path / "demo")
    (tmp_path / "demo" / "results").mkdir()
    create_output_folder(tmp_path / "demo")
    assert not (tmp_path / "demo" / "results").exists()


def test_corners_of_the_test_photographs_are_in_no_training_photograph(tmp_path):
    testing = [read_rgb(path) for path in (write_photos(tmp_path) / "GTmod12").iterdir()]
    training = [read_rgb(path).tobytes() for path in (tmp_path / "DF2K/train").iterdir()]
    for image in testing:
        for row in (image[0], image[-1]):
            for pixels in (row[:32], row[-32:]):
                assert not any(pixels.tobytes() in photo for photo in training)


def options_of(semantics):
    overrides = [Override.parse(setting) for setting in semantics.settings]
    return load_options(ROOT / f"options/{semantics.recipe}.yml", overrides)


def test_weights_of_the_packages_are_used_and_another_network_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PRETRAINED", tmp_path / "nothing")
    semantics = choose_semantics(tmp_path)
    options = options_of(semantics)
    trained_with = set(pretrained_weights(options).values())
    assert trained_with == {"tf_efficientnet_lite0.in1k.safetensors"}
    scored_by = set(metric_weights(semantics.metrics))
    assert {file.name for file in semantics.pretrained_root.iterdir()} == scored_by
    assert scored_by > trained_with
    states = load_frozen_states(options)
    assert states.extractor is not None
    assert "perceptual" in states.losses


def test_weights_are_random_without_the_packages(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "PRETRAINED", tmp_path / "nothing")
    monkeypatch.setattr(demo, "efficientnet_lite_state", lambda variant: None)
    semantics = choose_semantics(tmp_path)
    assert set(pretrained_weights(options_of(semantics)).values()) == {"random"}
    assert semantics.metrics == ()
    assert "not the quality of SeD" in capsys.readouterr().out


def test_clip_and_vgg19_are_used_if_they_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PRETRAINED", tmp_path)
    files = {"RN50.pt", "vgg19-dcbb9e9d.pth"}
    for name in files:
        (tmp_path / name).touch()
    assert set(pretrained_weights(options_of(choose_semantics(tmp_path))).values()) == files
