"""What is published with weights: everything that is on disk about them, and nothing about the machine."""

import json
import re

import pytest
import safetensors.torch
import scipy.stats
import torch
import yaml

from sed_sr.models.rrdb import RRDBNet
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import load_options
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.generator_file import load_generator, open_generator_file
from sed_sr.utils.weights.model_card import without_paths, write_repository
from tests.spandrel_networks import NETWORKS

TINY = {"type": "rrdb", "features": 8, "blocks": 1, "growth": 4}
SCORES = {"Set5": {"psnr": 30.12351, "ssim": 0.87654}}
RECIPE = "options/train_rrdb_P+SeD.yml"
SECRET = "/home/alice/secret"


def options_of_a_run(recipe=RECIPE, **more):
    return load_options(recipe).model_copy(update=more).model_dump(mode="json") | {"generator": TINY}


def generator_file(path, options, *, step=1234, scores=SCORES):
    torch.manual_seed(0)
    network = RRDBNet(features=8, blocks=1, growth=4)
    about = {"options": options, "step": step, "scale": 4, "scores": scores, "scored_step": 1200}
    states = {"params": network.state_dict(), "params_ema": network.state_dict()}
    checkpoint.save_generator(path, **states, **about)
    return open_generator_file(path)


def published(folder, file, *, license_id=None, scores=None):
    """The front matter, and the rest of the card."""
    write_repository(folder, file, repository="user/net", license_id=license_id, scores=scores)
    _, front_matter, body = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(front_matter), body


def table_of(body):
    rows = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_card_says_what_the_file_says(tmp_path):
    options = options_of_a_run()
    file = generator_file(tmp_path / "net.pth", options)
    metadata, body = published(tmp_path / "out", file, license_id="apache-2.0")
    assert metadata == {
        "license": "apache-2.0",
        "library_name": "sed-sr",
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", "sed"],
    }
    parameters = sum(value.numel() for value in RRDBNet(features=8, blocks=1, growth=4).parameters())
    for text in (
        "# train_rrdb_P+SeD\n",
        "RRDB (1 block, 8 features, growth 4), x4",
        f"- parameters: {parameters:,}",
        "running average",
        "was trained for 1,234 steps, against",
        "semantic-aware discriminator of SeD (PatchGAN, cross-attention, semantics of clip/RN50)",
        "--weights hf://user/net/model.safetensors",
        "last validation during training, at step 1,200",
    ):
        assert text in body
    assert table_of(body) == {"benchmark": ["psnr", "ssim"], "---": ["---:", "---:"], "Set5": ["30.1235", "0.8765"]}


def test_recipe_in_the_card_is_that_of_the_run(tmp_path):
    file = generator_file(tmp_path / "net.pth", options_of_a_run())
    _, body = published(tmp_path / "out", file)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(re.search("```yaml\n(.*?)```", body, re.DOTALL)[1])
    assert load_options(str(recipe)).model_dump(mode="json") == options_of_a_run()


def test_published_weights_are_those_of_the_file_with_its_record(tmp_path):
    file = generator_file(tmp_path / "net.pth", options_of_a_run())
    published(tmp_path / "out", file)
    again = open_generator_file(tmp_path / "out/model.safetensors")
    assert (again.about, again.paper_row) == (file.about, file.paper_row)
    state = file.weights.state
    assert again.weights.state.keys() == state.keys()
    assert all(torch.equal(again.weights.state[name], value) for name, value in state.items())
    assert load_generator(again).scale == 4


def hidden(value):
    """The same options, where every text is a path."""
    if isinstance(value, dict):
        return {f"{SECRET}/{key}" if key == "train_sub" else key: hidden(part) for key, part in value.items()}
    if isinstance(value, list):
        return [hidden(part) for part in value]
    return f"{SECRET}/{value}" if isinstance(value, str) else value


def test_no_path_of_the_machine_is_published(tmp_path):
    """Whichever option holds it; also keys (folders of images) and labels."""
    options = options_of_a_run()
    secrets = hidden(options) | {"name": "run", "generator": TINY}
    secrets["semantic_extractor"]["model"], secrets["losses"]["perceptual"]["model"] = "clip/RN50", "vgg19"
    secrets["test"]["weights"] = [f"A={SECRET}/a.pth", f"{SECRET}/b/", "hf://user/net/a.pth", "B=hf://user/net/a.pth"]
    folder = tmp_path / "secret"
    folder.mkdir()
    file = generator_file(folder / "net.pth", secrets)
    published(tmp_path / "out", file)
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        for word in (b"alice", b"secret", str(tmp_path).encode()):
            assert word not in content, path
    left = open_generator_file(tmp_path / "out/model.safetensors").record["options"]
    assert left["test"]["weights"] == ["a.pth", "b", "hf://user/net/a.pth", "B=hf://user/net/a.pth"]
    assert left["semantic_extractor"]["model"] == "clip/RN50"
    assert left["dataset"]["hr"] == {"train_sub": 1.0}
    assert "paths" not in left


def test_folders_of_the_same_name_are_kept_apart():
    options = {"dataset": {"hr": {"/a/train": 1.0, "/b/train": 0.5, "c/train/": 0.25}}}
    assert without_paths(options) == {"dataset": {"hr": {"train": 1.0, "train_2": 0.5, "train_3": 0.25}}}


@pytest.mark.parametrize(
    ("recipe", "objective", "tags"),
    [
        ("options/train_rrdb_psnr.yml", "PSNR-oriented, without a discriminator", ["super-resolution"]),
        ("options/train_rrdb_U.yml", "against a plain discriminator (U-Net)", ["super-resolution"]),
        ("options/train_rrdb_U+SeD.yml", "discriminator of SeD (U-Net, cross-attention", ["super-resolution", "sed"]),
    ],
)
def test_card_tells_how_the_network_was_trained(recipe, objective, tags, tmp_path):
    metadata, body = published(tmp_path / "out", generator_file(tmp_path / "net.pth", options_of_a_run(recipe)))
    assert objective in body
    assert metadata["tags"] == tags
    assert "license" not in metadata


def test_weights_without_a_record_are_published_without_a_history(tmp_path):
    torch.save(RRDBNet(features=8, blocks=1, growth=4).state_dict(), tmp_path / "net.pth")
    _, body = published(tmp_path / "out", open_generator_file(tmp_path / "net.pth"))
    assert "# net\n" in body
    assert "RRDB (1 block, 8 features, growth 4), x4" in body
    assert "## Training" not in body
    assert "## Scores" not in body


def test_networks_of_spandrel_are_published_under_their_own_names(tmp_path):
    state = NETWORKS["Compact"]().state_dict()
    torch.save(state, tmp_path / "net.pth")
    file = open_generator_file(tmp_path / "net.pth")
    _, body = published(tmp_path / "out", file)
    assert f"- network: {file.other.about}" in body
    again = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())


def results_of(file, *, about=None, source=None, **settings):
    """results.json as test.py writes it."""
    psnr = [30.0, 31.5, 29.0, 33.0, 28.5]
    error = scipy.stats.sem(psnr)
    benchmarks = {
        "Set|5": {"mean": {"psnr": 30.4, "niqe": None}, "standard_error": {"psnr": error, "niqe": None},
                  "images_scored": {"psnr": 5, "niqe": 3}, "images_total": 5},
        "Photos": {"mean": {"niqe": 4.0}, "standard_error": {"niqe": 0.5}, "images_scored": {"niqe": 2},
                   "images_total": 2},
    }  # fmt: skip
    metrics = {"psnr": {"title": "PSNR", "lower_is_better": False}, "niqe": {"title": "NIQE", "lower_is_better": True}}
    bicubic = {"source": "bicubic", "about": "bicubic", "benchmarks": {}}
    ours = {"source": str(source or file.path), "about": about or file.about, "benchmarks": benchmarks}
    settings = {"precision": "fp32", "self_ensemble": False, **settings}
    return {"protocol": "PSNR on Y", "settings": settings, "metrics": metrics, "weights": [bicubic, ours]}, psnr


def test_scores_of_test_py_come_with_intervals(tmp_path):
    file = generator_file(tmp_path / "net.pth", options_of_a_run())
    results, psnr = results_of(file, self_ensemble=True)
    (tmp_path / "results.json").write_text(json.dumps(results))
    _, body = published(tmp_path / "out", file, scores=tmp_path)
    low, high = scipy.stats.t.interval(0.95, 4, loc=30.4, scale=scipy.stats.sem(psnr))
    assert r"| Set\|5 |" in body
    table = table_of(body)
    assert table["benchmark"] == ["PSNR ↑", "NIQE ↓"]
    assert table[r"Set\|5"] == [f"30.4000 ± {(high - low) / 2:.4f}", "inf (3 of 5 images)"]
    assert table["Photos"][0].strip() == ""
    assert table["Photos"][1] == f"4.0000 ± {scipy.stats.t.ppf(0.975, 1) * 0.5:.4f}"
    assert "95 % confidence intervals (Student's t). PSNR on Y. Upscaled in fp32, with self-ensemble." in body
    assert "30.1235" not in body  # of the validation


def test_scores_must_be_of_the_weights(tmp_path):
    """Of the file as it is now, or of a copy that states the same run and step."""
    file = generator_file(tmp_path / "net.pth", options_of_a_run())

    def refusal(**results):
        (tmp_path / "results.json").write_text(json.dumps(results_of(file, **results)[0]))
        with pytest.raises(UserError) as caught:
            published(tmp_path / "out", file, scores=tmp_path)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "no scores of" in refusal(about="RRDB, train_rrdb_P+SeD at step 1,000")
    (tmp_path / "results.json").write_text(json.dumps(results_of(file, source="elsewhere/net.pth")[0]))
    published(tmp_path / "out", file, scores=tmp_path)
    (tmp_path / "bare").mkdir()
    torch.save(RRDBNet(features=8, blocks=1, growth=4).state_dict(), tmp_path / "bare.pth")
    file = open_generator_file(tmp_path / "bare.pth")
    (tmp_path / "results.json").write_text(json.dumps(results_of(file, source=tmp_path / "net.pth")[0]))
    with pytest.raises(UserError, match="no scores of"):
        published(tmp_path / "out2", file, scores=tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results_of(file)[0]))
    published(tmp_path / "out2", file, scores=tmp_path)


@pytest.mark.parametrize("content", [None, "{", '{"weights": [{"label": "a", "source": "a", "benchmarks": {}}]}'])
def test_folder_without_scores_is_refused(content, tmp_path):
    file = generator_file(tmp_path / "net.pth", options_of_a_run())
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json"):
        published(tmp_path / "out", file, scores=tmp_path)
