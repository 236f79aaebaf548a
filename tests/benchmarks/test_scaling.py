"""What is predicted of several GPUs agrees with what can be said without the model."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.random_step import random_recipe, random_step
from benchmarks.scaling import GPUS, LINKS, prediction, sent_bytes
from sed_sr.models.step_memory import ALIGNMENT, SCALARS

ROOT = Path(__file__).parents[2]
TINY = {
    "generator__blocks": 1,
    "generator__features": 8,
    "generator__growth": 4,
    "discriminator__features": 8,
    "dataset__hr_patch_px": 64,
    "dataloader__batch_size": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def options():
    return random_recipe(str(ROOT / "options/train_rrdb_P+SeD.yml"), **TINY)


def test_a_step_sends_the_gradients_of_both_networks_once(options):
    step, batch = random_step(options, torch.device("cpu"))
    parameters = [p for network in (step.generator, step.discriminator) for p in network.parameters()]
    gradients = 4 * sum(parameter.numel() for parameter in parameters)
    padding = 4 * (ALIGNMENT * len(parameters) + SCALARS)
    assert gradients < sent_bytes(step, batch) <= gradients + padding


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_a_sum_takes_each_byte_to_and_fro_once_however_many_gpus_there_are(link):
    size_bytes = 10**12  # beside which latency counts for nothing
    assert link.all_reduce_s(size_bytes, 1) == 0
    assert link.all_reduce_s(size_bytes, 2) == pytest.approx(size_bytes / link.bytes_per_s, rel=1e-3)
    assert link.all_reduce_s(size_bytes, 10**6) == pytest.approx(2 * size_bytes / link.bytes_per_s, rel=1e-3)


def test_predicted_efficiency_is_the_share_of_the_step_in_step_and_sum(options):
    table = prediction(options, batch=1, rate=1.0, step_s=1e-3)
    rows = re.findall(r"\| ([\d.]+) \| ([\d.]+)% \|", table)
    assert len(rows) == len(LINKS) * len(GPUS)
    for sent_ms, efficiency in rows:
        assert float(efficiency) == pytest.approx(100 / (1 + float(sent_ms)), rel=0.01)
    by_rate = prediction(options, batch=4, rate=1e12, step_s=None)
    tflop, step_ms = map(float, re.search(r"([\d.]+) TFLOP per image, batch 4, ([\d.]+) ms", by_rate).groups())
    assert step_ms == pytest.approx(4000 * tflop, rel=0.01)
