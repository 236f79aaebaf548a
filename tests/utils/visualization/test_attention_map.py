"""`python -m utils.visualization.attention_map`: all figures, or a sentence that says why one is missing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sed_sr.data.images import read_rgb
from sed_sr.models.build import build_discriminator, build_extractor
from sed_sr.models.vgg_discriminator import VGGDiscriminator
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import load_options
from sed_sr.utils.visualization.attention_map import check_points, draw_figures, main, read_images
from sed_sr.utils.visualization.discriminator_file import load_discriminator
from sed_sr.utils.visualization.discriminator_views import respond
from sed_sr.utils.visualization.figure import GAP_PX, TITLE_PX
from sed_sr.utils.weights import checkpoint

ALL = {"overview.png", "attention.png", "semantics.png", "real_fake.png"}
CPU = torch.device("cpu")


def save_state(path: Path, *, fusion: str = "cross-attention", kind: str = "patch", **changes) -> Path:
    """The parts of a training state that matter here, with an option that this version does not know."""
    said = {
        "name": "run",
        "discriminator": {"type": kind, "fusion": fusion, "features": 8},
        "semantic_extractor": {"weights": "random"},
    }
    options = load_options({**said, "generator": {"type": "rrdb"}})
    discriminator = build_discriminator(options, build_extractor(options, None))
    state = {"step": 1200, "params": {}, "options": {**said, "losses": {"future": 1}}}
    state["train_step"] = {"discriminator": discriminator.state_dict()}
    checkpoint.save_state(path, state | changes)
    return path


def save_image(path: Path, height: int, width: int, *, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("states")
    fusions = ("cross-attention", "concatenation", "none")
    return {fusion: save_state(root / f"{fusion}.pth", fusion=fusion) for fusion in fusions}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the command in an empty folder; returns its output."""
    monkeypatch.chdir(tmp_path)

    def run_(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["attention_map", *map(str, words)])
        assert main() == 0
        return capsys.readouterr().out

    return run_


def written(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_four_figures_and_a_description_of_the_discriminator(run, states):
    save_image(Path("photo.png"), 64, 80)
    output = run("--weights-d", states["cross-attention"], "--image", "photo.png")
    assert "patch discriminator of run at step 1,200" in output
    assert "random weights" in output
    assert "stripped" not in output
    assert written("results/photo_attention") == ALL
    assert read_rgb(Path("results/photo_attention/semantics.png")).shape == (64, 80, 3)


def test_discriminator_saved_in_wrappers_is_found(tmp_path, states):
    state = checkpoint.load(states["cross-attention"])
    tensors = state["train_step"]["discriminator"]
    wrapped = {f"model.discriminator.module._orig_mod.{name}": value for name, value in tensors.items()}
    wrapped["model.generator.conv0.weight"] = torch.ones(1)
    checkpoint.save_state(tmp_path / "wrapped.pth", state | {"train_step": {"discriminator": wrapped}})
    trained = load_discriminator(tmp_path / "wrapped.pth", device=CPU)
    assert all(torch.equal(value, tensors[name]) for name, value in trained.discriminator.state_dict().items())
    assert trained.about.endswith(", stripped of 'model.', 'discriminator.', 'module.', '_orig_mod.'")


def test_a_row_for_each_point_and_a_column_for_each_block(run, states):
    save_image(Path("photo.png"), 64, 64)
    sizes = {}
    for name, words in {
        "one": "--point 3 4",
        "two": "--point 3 4 --point 60 60",
        "block": "--point 3 4 --block 2",
    }.items():
        run("--weights_d", states["cross-attention"], "--image", "photo.png", *words.split(), "--output", name)
        sizes[name] = read_rgb(Path(name) / "attention.png").shape[:2]
    (height, width), gap_px = sizes["one"], 12
    assert sizes["two"] == (2 * height - gap_px, width)
    assert sizes["block"][0] == height
    assert sizes["block"][1] == pytest.approx(width / 2, abs=gap_px)  # of the image and three blocks


def test_points_are_relative_to_the_image_and_not_to_the_shown_part(tmp_path):
    image = save_image(tmp_path / "photo.png", 64, 90)
    assert "x from 5 to 84, y from 0 to 63" in check_points([(5, 0), (84, 63)], read_rgb(image), image)
    with pytest.raises(UserError, match=r"--point 85 63 is outside .*photo\.png.* x from 5 to 84, y from 0 to 63"):
        check_points([(85, 63)], read_rgb(image), image)


def test_point_of_a_cropped_image_is_drawn_where_it_is(tmp_path, states):
    """The same figure as for the crop itself, with the same point."""
    hr = read_rgb(save_image(tmp_path / "photo.png", 64, 90))
    trained = load_discriminator(states["cross-attention"], device=CPU)
    whole = draw_figures(trained, hr, {}, points=[(5 + 20, 30)], block=1)
    crop = draw_figures(trained, hr[:, 5:85], {}, points=[(20, 30)], block=1)
    below = GAP_PX + TITLE_PX  # titles have the coordinates in the image
    assert np.array_equal(whole["attention.png"][below:], crop["attention.png"][below:])
    assert np.array_equal(whole["real_fake.png"], crop["real_fake.png"])


def test_hr_is_cropped_to_an_sr_image_that_lacks_the_last_rows(tmp_path, run, states):
    """HR of 67x82 was cropped to whole LR pixels before SR was made."""
    image, sr = save_image(tmp_path / "photo.png", 67, 82), save_image(tmp_path / "sr.png", 64, 80, seed=1)
    hr_pixels, sr_pixels = read_images(image, sr)
    assert np.array_equal(hr_pixels, read_rgb(image)[:64, :80])
    assert np.array_equal(sr_pixels["SR"], read_rgb(sr))
    run("--weights_d", states["cross-attention"], "--image", image, "--output", "without")
    run("--weights_d", states["cross-attention"], "--image", image, "--sr", sr, "--output", "with")
    without, both = (read_rgb(Path(name) / "real_fake.png").shape[0] for name in ("without", "with"))
    assert both > 1.8 * without


@pytest.mark.parametrize(("height", "width"), [(64, 84), (56, 80), (128, 160)])
def test_sr_of_another_image_is_refused(tmp_path, height, width):
    image, sr = save_image(tmp_path / "photo.png", 64, 80), save_image(tmp_path / "sr.png", height, width)
    with pytest.raises(UserError, match=rf"sr\.png has {width}x{height} pixels.* 80x64"):
        read_images(image, sr)


@pytest.mark.parametrize(
    ("fusion", "files", "sentence"),
    [
        ("concatenation", ALL - {"attention.png"}, "concatenates the semantics and has no attention"),
        ("none", {"overview.png", "real_fake.png"}, "no semantics and no attention"),
    ],
)
def test_other_figures_are_drawn_without_attention(run, states, fusion, files, sentence):
    save_image(Path("photo.png"), 64, 64)
    output = run("--weights_d", states[fusion], "--image", "photo.png", "--point", 3, 3, "--output", "out")
    assert sentence in output
    assert written("out") == files


@pytest.mark.parametrize("kind", ["patch", "unet"])
def test_loaded_discriminator_is_the_trained_one(tmp_path, kind):
    path = save_state(tmp_path / "state.pth", kind=kind)
    state = checkpoint.load(path)
    for tensor in state["train_step"]["discriminator"].values():
        tensor.add_(0.01)
    torch.save(state, path)
    trained = load_discriminator(path, device=CPU)
    assert not trained.discriminator.training
    loaded = trained.discriminator.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state["train_step"]["discriminator"].items())
    image = torch.rand(1, 3, 64, 64)
    real, _ = respond(trained.discriminator, image, trained.extractor(image))
    assert real.isfinite().all()


def test_discriminator_of_a_run_is_loaded_from_its_weights_as_from_its_state(tmp_path, states):
    state = checkpoint.load(states["concatenation"])
    params, path = state["train_step"]["discriminator"], tmp_path / "discriminator_latest.pth"
    checkpoint.save_discriminator(path, params=params, options=state["options"], step=state["step"])
    ours, theirs = (load_discriminator(file, device=CPU) for file in (path, states["concatenation"]))
    assert ours.about == theirs.about
    image = torch.rand(1, 3, 64, 64)
    logits = [trained.discriminator(image, trained.extractor(image)) for trained in (ours, theirs)]
    assert torch.equal(*logits)


def test_state_without_a_discriminator_and_generator_weights_have_different_messages(tmp_path):
    psnr = save_state(tmp_path / "psnr.pth", train_step={})
    with pytest.raises(UserError, match=r"psnr\.pth is a training state of PSNR-oriented training"):
        load_discriminator(psnr, device=CPU)
    torch.save({"params": {"conv_first.weight": torch.zeros(3)}}, tmp_path / "generator.pth")
    with pytest.raises(UserError, match=r"generator\.pth holds an unknown network.*<run>/discriminator_latest\.pth"):
        load_discriminator(tmp_path / "generator.pth", device=CPU)


def test_discriminator_with_one_logit_for_an_image_is_refused(tmp_path):
    path, options = (
        tmp_path / "discriminator_latest.pth",
        {"name": "run", "discriminator": {"type": "vgg", "fusion": "none"}},
    )
    params = VGGDiscriminator(features=8).state_dict()
    checkpoint.save_discriminator(path, params=params, options=options, step=3)
    with pytest.raises(
        UserError, match=r"latest\.pth holds a plain VGG [^\n]* only patch and unet discriminators can be drawn$"
    ):
        load_discriminator(path, device=CPU)


def test_state_that_contradicts_its_options_is_named(tmp_path, states):
    state = checkpoint.load(states["cross-attention"])
    options = state["options"]
    for discriminator, sentence in (
        ({**options["discriminator"], "features": 16}, "does not fit the options"),
        ({**options["discriminator"], "semantic": True}, "semantic is not an option"),
    ):
        torch.save({**state, "options": {**options, "discriminator": discriminator}}, tmp_path / "state.pth")
        with pytest.raises(UserError, match=rf"state\.pth.*{sentence}"):
            load_discriminator(tmp_path / "state.pth", device=CPU)


def test_weights_of_the_extractor_are_read_from_the_given_folder(tmp_path, states, monkeypatch):
    monkeypatch.setenv("SED_OFFLINE", "1")
    state = checkpoint.load(states["cross-attention"])
    state["options"] |= {"semantic_extractor": {}, "paths": {"pretrained_root": "elsewhere"}}
    torch.save(state, tmp_path / "state.pth")
    for root in (None, tmp_path / "mine"):
        with pytest.raises(UserError, match=str(root or "elsewhere")):
            load_discriminator(tmp_path / "state.pth", device=CPU, pretrained_root=root)


def test_image_is_never_overwritten(run, states):
    image = save_image(Path("overview.png"), 64, 64)
    before = image.read_bytes()
    with pytest.raises(UserError, match=r"overview\.png would be overwritten"):
        run("--weights_d", states["none"], "--image", image, "--output", ".")
    assert image.read_bytes() == before


def test_mistake_is_one_sentence(command, tmp_path):
    save_image(tmp_path / "photo.png", 20, 64)
    done = command(
        "-m", "utils.visualization.attention_map", "--weights_d", "no.pth", "--image", "photo.png", cwd=tmp_path
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "photo.png" in done.stderr
    assert "64x20 pixels" in done.stderr
