"""The estimate of what a run will write, against the files that it writes."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sed_sr.data.batches import Batch
from sed_sr.data.benchmarks import find_benchmark
from sed_sr.models.build import build_generator, build_train_step
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.utils.training import checklist
from sed_sr.utils.training.checklist import check_disk
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.weights import checkpoint

RECIPE = Path(__file__).parents[3] / "options/train_rrdb_psnr.yml"
SETTINGS = {
    "generator.features": 64,
    "generator.blocks": 1,
    "train.ema_decay": 0.9,
    "train.total_steps": 100,
    "train.save_every_steps": 10,
    "train.keep_states": 2,
    "train.keep_weights": 50,
    "validation.every_steps": 50,
}


@pytest.fixture
def needed_bytes(tmp_path, monkeypatch, request):
    """Finds the least free space with which the check passes; the parameter is further settings."""
    settings = SETTINGS | getattr(request, "param", {})
    options = load_options(RECIPE, [Override(key, value, key) for key, value in settings.items()])
    generator, device = build_generator(options), torch.device("cpu")
    step = build_train_step(options, generator=generator, device=device, extractor_state=None, loss_states={})
    step(Batch(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 32, 32)))  # creates Adam's moments

    def fits(free_bytes, benchmarks):
        usage = namedtuple("usage", "free")(free_bytes)
        monkeypatch.setattr(checklist.shutil, "disk_usage", lambda folder: usage)
        try:
            check_disk(options, RunFolder(tmp_path / "run"), step, benchmarks, steps_left=100)
        except UserError:
            return False
        return True

    def search(*benchmarks):
        low, high = 0, 2**40
        while high - low > 1:
            middle = (low + high) // 2
            enough = fits(middle, list(benchmarks))
            low, high = (low, middle) if enough else (middle, high)
        return high

    return search, step


def test_space_for_states_and_weights(needed_bytes, tmp_path):
    search, step = needed_bytes
    weights = {"params": step.generator.state_dict(), "params_ema": step.ema.state_dict()}
    record = {"options": {}, "step": 1, "scale": 4, "scores": {}, "scored_step": 0}
    checkpoint.save_generator(tmp_path / "weights.pth", **weights, **record)
    checkpoint.save_state(tmp_path / "state.pth", {**weights, "step": 1, "train_step": step.state_dict()})
    weights_bytes, state_bytes = ((tmp_path / name).stat().st_size for name in ("weights.pth", "state.pth"))
    # Two states, a third until the oldest is deleted; the latest weights, twice while they are replaced; 2 kept ones.
    assert search() == pytest.approx(3 * state_bytes + 4 * weights_bytes, rel=0.05)


@pytest.mark.parametrize(
    "needed_bytes", [{"discriminator": {"type": "unet", "fusion": "none"}, "losses.gan": {}}], indirect=True
)
def test_space_for_the_discriminator(needed_bytes, tmp_path):
    search, step = needed_bytes
    weights = {"params": step.generator.state_dict(), "params_ema": step.ema.state_dict()}
    record = {"options": {}, "step": 1, "scale": 4, "scores": {}, "scored_step": 0}
    checkpoint.save_generator(tmp_path / "weights.pth", **weights, **record)
    checkpoint.save_discriminator(tmp_path / "d.pth", params=step.discriminator.state_dict(), options={}, step=1)
    checkpoint.save_state(tmp_path / "state.pth", {**weights, "step": 1, "train_step": step.state_dict()})
    weights_bytes, d_bytes, state_bytes = (
        (tmp_path / name).stat().st_size for name in ("weights.pth", "d.pth", "state.pth")
    )
    # As above; the discriminator's weights, twice while they are replaced.
    assert search() == pytest.approx(3 * state_bytes + 4 * weights_bytes + 2 * d_bytes, rel=0.02)


def test_space_for_validation_images(needed_bytes, tmp_path):
    search, _ = needed_bytes
    (tmp_path / "Photos").mkdir()
    Image.fromarray(np.zeros((100, 200, 3), np.uint8)).save(tmp_path / "Photos/a.png")
    benchmark = find_benchmark(tmp_path, "Photos", scale=4)
    raw_bytes = 3 * 400 * 800
    assert 2 * raw_bytes * 0.4 < search(benchmark) - search() < 2 * raw_bytes  # twice; a PNG is smaller than its pixels
