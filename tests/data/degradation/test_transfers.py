"""The host never waits for a GPU while training pairs are made.

For each batch it starts a copy of the images and one of all that was drawn, and reads nothing back.
"""

from contextlib import contextmanager
from functools import cache, partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sed_sr.data import batches
from sed_sr.data.batches import BicubicPairs, DegradedPairs, GivenPairs
from sed_sr.data.degradation.draws import Stage
from sed_sr.data.degradation.pipeline import Degradation
from sed_sr.data.degradation.sharpen import sharpen

STAGE = Stage(
    blur_probability=0.9,
    kernel_px=(7, 21),
    kernel_kinds={"iso": 0.5, "plateau_aniso": 0.5},
    sinc_probability=0.1,
    sigma_px=(0.2, 3.0),
    beta_generalized=(0.5, 4.0),
    beta_plateau=(1.0, 2.0),
    resize={"up": 0.2, "down": 0.7, "keep": 0.1},
    resize_range=(0.15, 1.5),
    gaussian_noise_probability=0.5,
    gaussian_noise_sigma=(1.0, 30.0),
    poisson_noise_scale=(0.05, 3.0),
    grey_noise_probability=0.4,
    jpeg_quality=(30.0, 95.0),
)
# Operation, whether its source is in pinned memory, whether it returns before the copy is done.
FREE_COPY = ("aten::_to_copy", True, True)


class TracedDegradation(Degradation):
    """Keeps the titles of the operations of a batch."""

    def __call__(self, hr, *, rng):
        self.titles = []
        return super().__call__(hr, rng=rng, trace=lambda title, images: self.titles.append(title))


class Transfers(TorchDispatchMode):
    """Collects all operations with tensors of more than one device, in the form of `FREE_COPY`."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            pinned = any(hasattr(tensor, "in_pinned_memory") for tensor in tensors)
            self.found.append((operation.name(), pinned, kwargs.get("non_blocking", False)))
        return result


@pytest.fixture
def one_stream(monkeypatch):
    """A batch is copied on the stream of the step: without a GPU there are no streams."""
    monkeypatch.setattr(batches, "_copy_batch", lambda images, device: images.to(device, non_blocking=True))


def loaded(**sides_px):
    """A batch of three as the loader yields it for a GPU."""
    return {name: torch.zeros(3, 3, px, px, dtype=torch.uint8).pin_memory() for name, px in sides_px.items()}


def transfers(pairs, batch, *, seed, device):
    with Transfers() as transfers:
        lr, hr, *_ = pairs(batch, seed=seed, device=device)
    assert lr.device == hr.device == device
    return transfers.found


def test_given_pairs_take_a_copy_of_lr_and_one_of_hr(fake_gpu, one_stream):
    assert transfers(GivenPairs(), loaded(lr=16, hr=64), seed=0, device=fake_gpu) == [FREE_COPY] * 2


def test_bicubic_pairs_take_a_copy_of_hr(fake_gpu, one_stream):
    pairs = BicubicPairs(scale=4)
    pairs(loaded(hr=64), seed=0, device=fake_gpu)  # the weights are copied once
    assert transfers(pairs, loaded(hr=64), seed=1, device=fake_gpu) == [FREE_COPY]


def test_degraded_pairs_take_a_copy_of_hr_and_one_of_all_that_was_drawn(fake_gpu, one_stream):
    degradation = TracedDegradation(first=STAGE, second=STAGE, final_sinc_probability=0.8)
    sharpening = partial(sharpen, kernel_px=51, weight=0.5, threshold=10)
    pairs = DegradedPairs(degradation, lr_patch_px=24, sharpening=sharpening, pool_pairs=7)
    seeds, titles, orders = range(12), set(), set()
    for seed in seeds:
        pairs(loaded(hr=128), seed=seed, device=fake_gpu)  # tables and weights are copied once
    for seed in seeds:
        assert transfers(pairs, loaded(hr=128), seed=seed, device=fake_gpu) == [FREE_COPY] * 2
        titles |= {title.split(",")[0] for title in degradation.titles}
        orders.add(tuple(title.split(" (")[0] for title in degradation.titles))
    assert titles >= {f"{stage} noise ({kind}" for stage in ("first", "second") for kind in ("Gaussian", "Poisson")}
    assert len(orders) == 2  # JPEG came before and after the last resize


def test_batch_is_copied_on_a_stream_of_its_own_and_the_step_waits_for_it(fake_gpu, monkeypatch):
    """The calls that make this so, in their order; only a GPU could show what they do."""
    calls = []

    class Stream:
        def __init__(self, device):
            calls.append("created")

        def wait_stream(self, other):
            assert (self, other) == (current, batches._copy_stream(fake_gpu))
            calls.append("waited for")

    @contextmanager
    def entered(stream):
        assert stream is not current
        with Transfers() as transfers:
            yield
        assert transfers.found == [FREE_COPY]
        calls.append("copied")

    def record_stream(images, stream):
        assert images.device == fake_gpu
        assert stream is current
        calls.append("recorded")

    current = Stream(fake_gpu)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(Tensor, "record_stream", record_stream)
    monkeypatch.setattr(batches, "_copy_stream", cache(batches._copy_stream.__wrapped__))
    calls.clear()
    GivenPairs()(loaded(lr=16, hr=64), seed=0, device=fake_gpu)
    assert calls == ["created", "copied", "waited for", "recorded", "copied", "waited for", "recorded"]
