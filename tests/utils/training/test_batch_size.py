"""Batch size `auto`: as large as memory allows, networks are not changed, and the run keeps the size."""

import copy
from pathlib import Path

import pytest
import torch

from sed_sr.data.build import build_training_pairs
from sed_sr.models.build import build_generator, build_train_step
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.options.schema import Options
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import TensorBytes
from sed_sr.utils.training.batch_options import with_batches
from sed_sr.utils.training.batch_size import (
    AUTO,
    USED_SHARE,
    Batches,
    GivenBatches,
    largest_batch_size,
    resolve_auto,
    resolve_batches,
    shrink_until,
)
from sed_sr.utils.training.checklist import Checklist
from sed_sr.utils.training.setup import prepare
from sed_sr.utils.weights import checkpoint

CPU = torch.device("cpu")
FREE_BYTES = 10**8
RECIPES = Path(__file__).parents[3] / "options"
TINY = {"generator.features": 8, "generator.blocks": 1, "generator.growth": 4, "train.ema_decay": 0.9}
GAN = {
    **TINY,
    "discriminator.features": 8,
    "semantic_extractor.weights": "random",
    "semantic_extractor.batch_statistics": True,
    "losses.perceptual.weights": "random",
}
SETTINGS = {
    "train_rrdb_psnr.yml": TINY,
    "train_rrdb_P+SeD.yml": GAN,
    "train_rrdb_psnr_real.yml": {**TINY, "dataset.hr_patch_px": 64, "degradation.hr_px": 80},
}


class Found:
    """The step of a recipe and the batch size that is found for it."""

    def __init__(self, recipe, **more):
        settings = {**SETTINGS[recipe], **{key.replace("__", "."): value for key, value in more.items()}}
        overrides = [Override(key, value, key) for key, value in settings.items()]
        self.options = load_options(RECIPES / recipe, overrides)
        self.step = build_train_step(
            self.options, generator=build_generator(self.options), device=CPU, extractor_state=None, loss_states={}
        )
        real = self.options.degradation is not None
        sides = {"hr": 80} if real else {"hr": 64, "lr": 16}
        self.sample = {name: torch.randint(256, (3, px, px), dtype=torch.uint8) for name, px in sides.items()}

    def pairs(self):
        return build_training_pairs(self.options, scale=4)

    def size(self, **arguments):
        usual = {"most": 10**6, "free_bytes": FREE_BYTES, "waiting_bytes": 0}
        return largest_batch_size(self.step, self.pairs(), {**self.sample, "name": "a"}, **{**usual, **arguments})

    def bytes_of_a_step(self, batch_size):
        """Peak memory of a step, including Adam's moments, which the first step creates."""
        step, pairs = copy.deepcopy(self.step), self.pairs()
        with TensorBytes() as counted:
            for size in (1, batch_size):
                loaded = {name: torch.stack([image] * size) for name, image in self.sample.items()}
                step(*(pairs(loaded, seed=0, device=CPU) for _ in range(step.batches_per_step)), watch=True)
        return counted.peak


@pytest.mark.parametrize("recipe", SETTINGS)
def test_size_fits_and_a_slightly_larger_one_does_not(recipe):
    found = Found(recipe)
    size = found.size()
    assert found.bytes_of_a_step(size) <= 1.02 * USED_SHARE * FREE_BYTES
    assert found.bytes_of_a_step(size + 1 + size // 20) > USED_SHARE * FREE_BYTES


def test_accumulated_and_prefetched_batches_count():
    found = Found("train_rrdb_psnr.yml", train__accumulate_batches=4)
    assert found.bytes_of_a_step(found.size()) <= 1.02 * USED_SHARE * FREE_BYTES
    found = Found("train_rrdb_psnr.yml")
    a_pair = (found.bytes_of_a_step(9) - found.bytes_of_a_step(5)) / 4
    assert found.size(waiting_bytes=int(a_pair)) == pytest.approx(found.size() / 2, abs=2)


def test_size_is_limited_by_most():
    assert Found("train_rrdb_psnr.yml").size(most=3) == 3


def test_networks_optimisers_and_random_numbers_do_not_change():
    def draw(*_):
        torch.rand(1)

    found = Found("train_rrdb_P+SeD.yml")
    found.step.generator.register_forward_hook(draw)  # as stochastic depth does
    frozen = torch.nn.ModuleList(found.step.frozen_networks)
    before = copy.deepcopy((found.step.state_dict(), frozen.state_dict(), torch.get_rng_state()))
    found.size()
    after = (found.step.state_dict(), frozen.state_dict(), torch.get_rng_state())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in found.step.generator.parameters())


def test_too_little_memory_for_a_single_pair_is_reported():
    with pytest.raises(UserError, match=r"batch_size is auto, but .* more than the 0\.001 GB that are free"):
        Found("train_rrdb_psnr.yml").size(free_bytes=10**6)


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 50, 99, 100, 200])
def test_size_that_does_not_fit_shrinks_until_it_does(limit):
    tried = []
    size = shrink_until(lambda size: tried.append(size) or size <= limit, 100)
    assert min(limit, 100) * 0.94 - 1 < size <= limit
    assert tried == sorted(set(tried), reverse=True)


class Two(World):
    """One of two processes; the other one finds that 3 pairs less fit."""

    def gather(self, value):
        return [value, value - 3 if isinstance(value, int) else value]

    def broadcast(self, value):
        return value


@pytest.fixture
def auto(workshop, monkeypatch) -> Options:
    """Options of a run on a small training set with batch size `auto`."""
    monkeypatch.chdir(workshop)
    options = load_options(workshop / "rrdb_psnr.yml")
    return with_batch_size(options, AUTO)


def with_batch_size(options, size):
    return with_batches(options, GivenBatches(size, None, None))


def test_run_gets_a_size_that_fits_on_every_process(auto):
    checks = Checklist()
    alone = prepare(auto, Checklist(), resume=None, thorough=False, world=World())
    pair = prepare(auto, checks, resume=None, thorough=False, world=Two(size=2))
    images = len(alone.dataset)
    assert alone.options == with_batches(auto, Batches(images, 1, images))  # limited by the training set, not by memory
    size = images // 2 - 3
    assert pair.options == with_batches(auto, Batches(size, 1, 2 * size))
    assert checks.notes["batch size"] == f"{images // 2 - 3}, the largest that fits, of {images} images"


def test_resumed_run_keeps_its_size(auto):
    begun = prepare(with_batch_size(auto, 5), Checklist(), resume=None, thorough=False, world=World())
    state = {
        "step": 1,
        "params": begun.train_step.generator.state_dict(),
        "options": begun.options.model_dump(mode="json"),
        "train_step": begun.train_step.state_dict(),
        "loop": {"samples": 5, "validated": 0, "processes": 1},
    }
    checkpoint.save_state(begun.folder.state(1), state)
    ready = prepare(auto, Checklist(), resume="auto", thorough=False, world=World())
    assert ready.options == begun.options
    assert len(ready.start.messages) == 1  # no option has changed


@pytest.mark.parametrize(
    ("processes", "given", "found"),
    [
        (4, (None, None, 32), (8, 1, 32)),  # the paper's
        (1, (None, None, 32), (8, 4, 32)),
        (8, (None, None, 32), (4, 1, 32)),
        (4, (None, None, 48), (12, 1, 48)),  # Real-ESRGAN's
        (1, (None, None, 26), (2, 13, 26)),
        (2, (None, 2, 32), (8, 2, 32)),
        (2, (16, None, 32), (16, 1, 32)),
        (2, (4, None, 32), (4, 4, 32)),
        (2, (4, 4, 32), (4, 4, 32)),
        (3, (None, None, None), (8, 1, 24)),
        (64, (8, None, None), (8, 1, 512)),
        (2, (5, 3, None), (5, 3, 30)),
    ],
)
def test_missing_values_follow_from_the_given_ones(processes, given, found):
    assert resolve_batches(GivenBatches(*given), processes=processes) == Batches(*found)


@pytest.mark.parametrize(
    ("processes", "given", "reason"),
    [
        (64, (None, None, 32), "64 processes cannot share evenly: set it to a multiple of 64, such as 64"),
        (3, (None, None, 32), "multiple of 3, such as 33"),
        (4, (8, 2, 32), "dataloader.batch_size 8 and train.accumulate_batches 2 make 64"),
        (1, (5, None, 32), "dataloader.batch_size 5 and train.accumulate_batches 6 make 30"),
        (1, (64, None, 32), "dataloader.batch_size 64 and train.accumulate_batches 1 make 64"),
        (1, (AUTO, 2, 32), "follows; it is 2 and must be null"),
    ],
)
def test_contradicting_values_are_refused(processes, given, reason):
    with pytest.raises(UserError, match=reason):
        resolve_batches(GivenBatches(*given), processes=processes)


def test_size_that_was_found_divides_the_pairs_of_a_process():
    given = GivenBatches(AUTO, None, 32)
    assert resolve_batches(given, processes=2) == given
    assert resolve_auto(given, 11, processes=2) == Batches(8, 2, 32)
    assert resolve_auto(GivenBatches(AUTO, None, None), 11, processes=2) == Batches(11, 1, 22)
