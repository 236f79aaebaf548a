"""Weights on a Hugging Face hub, from the command line: pushed, scored, trained from, and never trusted."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sed_sr.models.discriminators import UNetDiscriminator
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.export import FORMATS
from sed_sr.utils.weights.generator_file import open_generator_file
from tests.conftest import ROOT, finished, last_state, same
from tests.spandrel_networks import NETWORKS
from tests.test_scoring import weights_in
from tests.test_security import CANARY, write_bare_pickle, write_zip

ON_HUB = "tests/scripts/on_local_hub.py"
ADDRESS = "hf://user/net/model.safetensors"
SCORE = ("--benchmarks", "Photos", "--metrics", "psnr")
BRIEF = ("--set", "train.total_steps=1", "--set", "validation.benchmarks=[]", "--set", "optimizer.learning_rate=1e-12",
         "--set", "optimizer.discriminator_learning_rate=1e-12")  # fmt: skip


@pytest.fixture
def on_hub(command, workshop, hub):
    """Runs a script of the project in the workshop, where addresses are those of the local hub."""
    return lambda script, *words, **more: command(ON_HUB, ROOT / script, *words, cwd=workshop, **more)


def test_round_trip_of_weights_changes_no_image(workshop, command, on_hub, hub):
    weights = weights_in(workshop, "a.pth")
    finished(on_hub("test.py", "--weights", weights, *SCORE, "--output_path", "scores"))
    push = ("-m", "utils.weights", "push", "user/net", "--weights", weights, "--scores", "scores", "--license", "mit")
    finished(command(*push, cwd=workshop, new=True), f"uploaded: {hub.url}/user/net/commit/")
    card = hub.repositories["user/net"].newest["README.md"].decode()
    (use,) = (line.split() for line in card.splitlines() if line.startswith("python test.py"))
    assert use[2:4] == ["--weights", ADDRESS]

    finished(on_hub("test.py", "--weights", weights, f"hub={use[3]}", *SCORE, "--output_path", "out", processes=2))
    assert hub.downloads == ["/user/net/resolve/main/model.safetensors"]
    local, downloaded = json.loads((workshop / "out/results.json").read_text())["weights"]
    assert (downloaded["label"], downloaded["source"]) == ("hub", ADDRESS)
    assert downloaded["about"] == local["about"]
    assert downloaded["benchmarks"] == local["benchmarks"]
    mean, images = local["benchmarks"]["Photos"]["mean"]["psnr"], local["benchmarks"]["Photos"]["images"]
    assert f"| Photos | {mean:.4f} ± " in card
    for image in images:
        ours, theirs = (
            np.asarray(Image.open(workshop / "out" / label / f"Photos/{image}.png"))
            for label in (local["label"], "hub")
        )
        assert np.array_equal(ours, theirs)


def test_run_starts_from_networks_of_the_hub_that_one_process_downloads(workshop, on_hub, hub):
    weights_in(workshop, "a.pth")
    torch.manual_seed(7)
    discriminator = UNetDiscriminator(semantic_channels=None, features=8).state_dict()
    checkpoint.save({"params": discriminator}, workshop / "d.pth")
    files = {name: (workshop / name).read_bytes() for name in ("a.pth", "d.pth")}
    hub.publish("user/net").commit({"runs/a.pth": files["a.pth"], "d.pth": files["d.pth"]})
    start, start_d = "hf://user/net/runs/a.pth", "hf://user/net/d.pth"
    train = partial(on_hub, "train.py", "--opt", "rrdb_U_real.yml", *BRIEF)
    finished(train("--resume", start, "--resume_d", start_d, processes=2), "snapshots")
    assert sorted(hub.downloads) == ["/user/net/resolve/main/d.pth", "/user/net/resolve/main/runs/a.pth"]
    hub.requests.clear()
    words = ("--set", "name=again", "--set", f"train.start_from={start}", "--set")
    finished(train(*words, f"train.start_discriminator_from={start_d}"))
    assert hub.downloads == []  # they are in the cache
    assert start in (workshop / "checkpoint/again/options.yml").read_text()
    for run in ("rrdb_U_real", "again"):
        for file, name in (("a.pth", "generator"), ("d.pth", "discriminator")):
            given = checkpoint.load(workshop / file)["params"]
            trained = checkpoint.load(workshop / "checkpoint" / run / f"{name}_latest.pth")["params"]
            for tensor, value in given.items():
                if not tensor.endswith(("._u", "._v")):  # singular vectors change without a learning rate
                    torch.testing.assert_close(trained[tensor], value, rtol=0, atol=1e-9)

    latest = (workshop / "checkpoint/rrdb_U_real/discriminator_latest.pth").read_bytes()
    hub.publish("user/run").commit({"discriminator_latest.pth": latest})
    photo, latest = "Evaluation/Photos/GTmod12/cat.png", "hf://user/run/discriminator_latest.pth"
    finished(on_hub("test.py", "--weights", "bicubic", "--weights_d", latest, *SCORE, "--output_path", "out"))
    assert "unet discriminator of rrdb_U_real at step 1" in (workshop / "out/report.html").read_text()
    finished(on_hub("utils/visualization/attention_map.py", "--weights_d", latest, "--image", photo), f"{latest}: unet")


def test_run_resumes_from_a_training_state_of_the_hub(workshop, on_hub, hub):
    train = partial(on_hub, "train.py", "--opt", "rrdb_psnr.yml", "--set", "validation.benchmarks=[]")
    finished(train())
    run = workshop / "checkpoint/rrdb_psnr"
    hub.publish("user/run").commit({"states/half.pth": (run / "states/state_000000002.pth").read_bytes()})
    finished(train("--set", "name=other", "--resume", "hf://user/run/states/half.pth"), "a training state at step 2")
    assert same(last_state(run)["train_step"], last_state(workshop / "checkpoint/other")["train_step"])


def test_network_of_spandrel_is_read_from_the_hub(workshop, on_hub, hub):
    torch.manual_seed(0)
    state = NETWORKS["Compact"]().state_dict()
    torch.save(state, workshop / "compact.pth")
    hub.publish("user/net").commit({"compact.pth": (workshop / "compact.pth").read_bytes()})
    recipe = yaml.safe_load((workshop / "rrdb_psnr.yml").read_text())
    recipe |= {"name": "tuned", "generator": {"type": "spandrel", "weights": "hf://user/net/compact.pth"}}
    (workshop / "tuned.yml").write_text(yaml.safe_dump(recipe))
    finished(on_hub("train.py", "--opt", "tuned.yml", *BRIEF), "starts from hf://user/net/compact.pth")
    trained = torch.load(workshop / "checkpoint/tuned/generator_latest.pth", weights_only=True)["params"]
    assert trained.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-9)


def test_file_of_the_hub_is_exported_into_the_working_directory(workshop, on_hub, hub):
    weights_in(workshop, "a.pth")
    hub.publish("user/net").commit({"nets/a.pth": (workshop / "a.pth").read_bytes()})
    finished(on_hub("utils/weights/export.py", "hf://user/net/nets/a.pth", "--to", "safetensors"))
    ours, exported = (open_generator_file(workshop / f"a{end}") for end in (".pth", FORMATS["safetensors"].suffix))
    assert same(exported.weights.state, ours.weights.state)


@pytest.mark.parametrize("write", [write_zip, write_bare_pickle])
def test_code_in_a_file_of_the_hub_is_never_executed(write, workshop, on_hub, hub):
    write(workshop / "evil.pth")
    hub.publish("user/net").commit({"evil.pth": (workshop / "evil.pth").read_bytes()})
    for words in (
        ("test.py", "--weights", "hf://user/net/evil.pth", *SCORE),
        ("train.py", "--opt", "rrdb_psnr.yml", "--resume", "hf://user/net/evil.pth"),
    ):
        done = on_hub(*words)
        assert done.returncode == 2
        assert "evil.pth" in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert not (workshop / CANARY).exists()
