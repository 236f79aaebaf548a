"""Networks that spandrel reads, from the command line: compared by test.py, fine-tuned by train.py, and mistakes."""

import numpy as np
import pytest
import safetensors.torch
import spandrel
import torch
import yaml
from PIL import Image
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.HAT import HAT
from spandrel.architectures.SPAN import SPAN

from tests.conftest import finished, last_state, same
from tests.test_scoring import weights_in

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # in spandrel


def hat(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    sizes = {"embed_dim": 12, "depths": (1,), "num_heads": (2,), "window_size": 8, "squeeze_factor": 4, "num_feat": 8}
    return HAT(upscale=4, **sizes).state_dict()


@pytest.fixture
def fine_tuning(workshop):
    """A folder with HAT.pth and hat.yml, which fine-tunes it with SeD."""
    torch.save({"params_ema": hat()}, workshop / "HAT.pth")
    recipe = yaml.safe_load((workshop / "rrdb_P+SeD.yml").read_text())
    recipe |= {"name": "hat", "generator": {"type": "spandrel", "weights": "HAT.pth"}}
    recipe["train"] |= {"ema_decay": 0.9, "total_steps": 2, "save_every_steps": 1}
    (workshop / "hat.yml").write_text(yaml.safe_dump(recipe))
    return workshop


def test_networks_of_several_projects_and_scales_are_upscaled_as_by_spandrel(command, tmp_path):
    """An odd-sized photograph; our own RRDB beside them."""
    torch.manual_seed(0)
    span = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).state_dict()
    plus = ESRGAN(num_filters=8, num_blocks=1, scale=4, plus=True).state_dict()
    torch.save({"params_ema": hat()}, tmp_path / "HAT.pth")
    torch.save({"params": plus}, tmp_path / "plus.pth")
    safetensors.torch.save_file(span, tmp_path / "2x-span.safetensors")
    photo = np.random.default_rng(0).integers(0, 256, (21, 34, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    ours = weights_in(tmp_path, "ours.pth")
    words = ("HAT.pth", "plus.pth", "2x-span.safetensors", ours, "--input", "photo.png", "--output_path", "out")
    about = (
        "HAT: HAT (medium, s64w8, 8nf, 12dim, 1conv), x4, from 'params_ema'",
        "plus: ESRGAN (ESRGAN+, 8nf, 1nb), x4, in old ESRGAN names, from 'params'",
        "2x-span: SPAN (8nf), x2, as a bare state dict",
        "RRDB (1 block, 8 features, growth 4), x4, in SeD names",
    )
    finished(command("test.py", "--weights", *words, cwd=tmp_path), *about)
    lr = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    for label, state in (("HAT", hat()), ("plus", plus), ("2x-span", span)):
        (file,) = (tmp_path / "out" / label).rglob("photo.png")
        expected = spandrel.ModelLoader().load_from_state_dict(state)(lr)[0].permute(1, 2, 0) * 255
        difference = torch.from_numpy(np.asarray(Image.open(file)).copy()) - expected
        assert difference.abs().max() < 0.51


def test_fine_tuning_with_sed_starts_from_the_file_and_resumes_without_it(command, fine_tuning):
    train = ("train.py", "--opt", "hat.yml", "--resume", "auto")
    finished(
        command(*train, "--check", cwd=fine_tuning, processes=2), "HAT (medium, s64w8, 8nf, 12dim, 1conv), x4 with 0.0"
    )
    whole = command(*train, "--set", "name=whole", cwd=fine_tuning)
    finished(whole, "starts from HAT.pth")
    finished(command(*train, "--set", "train.total_steps=1", cwd=fine_tuning))
    (fine_tuning / "HAT.pth").unlink()
    finished(command(*train, cwd=fine_tuning), "resumes from")
    runs = fine_tuning / "checkpoint"
    assert same(last_state(runs / "hat")["train_step"], last_state(runs / "whole")["train_step"])

    saved = torch.load(runs / "hat/generator_latest.pth", weights_only=True)
    assert saved["params"].keys() == hat().keys()
    moved = max((saved["params"][name] - value).abs().max() for name, value in hat().items())
    assert 1e-4 < moved < 0.01  # two steps from the weights of the file
    spandrel.ModelLoader().load_from_state_dict(saved["params_ema"])
    latest = "checkpoint/hat/generator_latest.pth"
    about = "hat: HAT (medium, s64w8, 8nf, 12dim, 1conv), x4, from 'params_ema'; hat at step 2"
    words = ("--weights", latest, "--benchmarks", "Photos", "--metrics", "psnr")
    finished(command("test.py", *words, cwd=fine_tuning), about)
    finished(command("test.py", "--opt", "hat.yml", *words, cwd=fine_tuning), about)
    state = "checkpoint/hat/states/state_000000002.pth"
    photo = "Evaluation/Photos/GTmod12/cat.png"
    maps = ("-m", "utils.visualization.attention_map", "--weights_d", state, "--image", photo, "--output", "maps")
    finished(command(*maps, cwd=fine_tuning))


def test_fine_tuning_may_start_from_other_weights_of_the_same_network(command, fine_tuning):
    torch.save({"params": hat(seed=1)}, fine_tuning / "psnr.pth")
    train = ("train.py", "--opt", "hat.yml", "--set", "train.total_steps=1")
    finished(command(*train, "--resume", "psnr.pth", cwd=fine_tuning), "starts from psnr.pth: from 'params'")
    saved = torch.load(fine_tuning / "checkpoint/hat/generator_latest.pth", weights_only=True)["params"]
    assert all(torch.allclose(saved[name], value, atol=0.005) for name, value in hat(seed=1).items())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda: Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=3).state_dict(),
            "generator.weights is given.pth: RealESRGAN Compact (8nf, 2nc), x3, but scale is 4",
        ),
        (
            lambda: Compact(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=2, upscale=4).state_dict(),
            "RealESRGAN Compact (8nf, 2nc), x4, maps 1 channels to 1; images here have 3 (RGB)",
        ),
        (lambda: {"x.weight": torch.ones(1)}, "no network that spandrel knows has weights of these names"),
        (lambda: {**hat(), "conv_first.weight": torch.ones(12)}, "spandrel cannot load these weights: IndexError"),
    ],
)
def test_weights_that_cannot_be_fine_tuned_are_one_sentence(command, fine_tuning, state, message):
    torch.save({"params": state()}, fine_tuning / "given.pth")
    train = ("train.py", "--opt", "hat.yml", "--set", "generator.weights=given.pth")
    done = command(*train, cwd=fine_tuning)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
    assert not (fine_tuning / "checkpoint").exists()


def test_missing_file_and_other_mistakes_are_one_sentence(command, fine_tuning):
    other = Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=4).state_dict()
    torch.save({"params": other}, fine_tuning / "other.pth")
    train = ("train.py", "--opt", "hat.yml")
    for words, message in (
        (("--set", "generator.weights=absent.pth"), "there is no weight file absent.pth"),
        (("--resume", "other.pth"), "other.pth holds RealESRGAN Compact (8nf, 2nc), x4, from 'params'"),
        (("--set", "train.gradient_checkpointing=true"), "HAT (medium, s64w8, 8nf, 12dim, 1conv), x4 does not support"),
    ):
        done = command(*train, *words, cwd=fine_tuning)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
