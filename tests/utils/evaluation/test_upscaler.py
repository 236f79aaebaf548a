"""Upscaling: whole images, batches, tiles, self-ensemble, half precision, CUDA graphs, too little memory."""

import copy
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sed_sr.utils.evaluation.upscaler
from sed_sr.data.imresize import imresize
from sed_sr.models.cuda_graph import WARM_UP_CALLS
from sed_sr.models.generator import Generator
from sed_sr.models.rrdb import RRDBNet
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.upscaler import OutOfMemory, Upscaler, bicubic, self_ensembled

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


def ignore(note):
    pass


def image_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def nearest(lr):
    return lr.repeat(4, axis=0).repeat(4, axis=1)


@pytest.fixture(scope="module")
def rrdb():
    """A small RRDB whose output resembles the image, with additional contrast."""
    torch.manual_seed(0)
    network = RRDBNet(features=8, blocks=1, growth=4).to(memory_format=torch.channels_last)
    network.conv_last.weight.data *= 20
    network.conv_last.bias.data.fill_(0.5)
    return network


class Nearest(Generator):
    """A generator that runs out of memory beyond `most_px` LR pixels; records its inputs."""

    scale = 4

    def __init__(self, most_px=10**9):
        super().__init__()
        self.most_px, self.calls = most_px, []

    def forward(self, lr):
        count, _, height, width = lr.shape
        self.calls.append((count, height, width))
        if count * height * width > self.most_px:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return lr.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)


class FakeRecorder:
    """A mock of CudaRecorder: a replay calls the function again and writes into the memory of the first result."""

    made = ()  # weak references to those of one test

    def __init__(self):
        self.shapes = []
        FakeRecorder.made += (weakref.ref(self),)

    def warm_up(self, function, inputs):
        return function(*inputs), False

    def record(self, function, inputs):
        self.shapes.append(tuple(inputs[0].shape))
        result = function(*inputs)

        def replay():
            assert self.shapes  # keeps the recorder, as a graph keeps its memory
            with torch.inference_mode():
                result.copy_(function(*inputs))

        return replay, result


@pytest.fixture(autouse=True)
def recorders():
    FakeRecorder.made = ()
    return lambda: [reference() for reference in FakeRecorder.made]


def test_network_runs_in_evaluation_mode_and_its_output_is_rounded():
    class Constant(Generator):
        scale = 4

        def forward(self, lr):
            assert not self.training
            assert not torch.is_grad_enabled()
            return torch.full((1, 3, 8, 8), 100.6 / 255)

    (sr,) = Upscaler(Constant().train(), CPU)([np.zeros((2, 2, 3), np.uint8)], ignore)
    assert (sr == 101).all()


@pytest.mark.parametrize("self_ensemble", [False, True])
@pytest.mark.parametrize("tile_px", [None, 64])
def test_batch_equals_single_images(rrdb, tile_px, self_ensemble):
    images = [image_of(30, 90, seed) for seed in range(3)]
    upscale = Upscaler(rrdb, CPU, tile_px=tile_px, self_ensemble=self_ensemble)
    alone = [sr for image in images for sr in upscale([image], ignore)]
    together = upscale(images, ignore)
    assert [sr.shape for sr in together] == [(120, 360, 3)] * 3
    assert np.abs(np.stack(alone).astype(int) - together).max() <= 1
    assert (np.stack(alone) != together).mean() < 0.001


@pytest.mark.parametrize("kind", ["whole", "tiles", "bicubic", "recorded"])
def test_16_bits_are_those_of_8_where_both_hold_the_image_and_finer(rrdb, kind):
    """Multiples of 257 are the values of 8 bits; the result is rounded to 65536 levels instead of 256."""
    upscale = {
        "whole": Upscaler(rrdb, CPU),
        "tiles": Upscaler(rrdb, CPU, tile_px=64),
        "bicubic": bicubic(4),
        "recorded": Upscaler(rrdb, CPU, new_recorder=FakeRecorder),
    }[kind]
    lr = image_of(70, 81)
    for _ in range(WARM_UP_CALLS + 1):  # the types are recorded apart
        (eight,) = upscale([lr], ignore)
        (deep,) = upscale([lr.astype(np.uint16) * 257], ignore)
    assert (eight.dtype, deep.dtype) == (np.uint8, np.uint16)
    assert np.abs(deep / 257 - eight).max() <= 0.5 + 1 / 257
    assert (deep % 257 != 0).mean() > 0.5
    (darker,) = upscale([lr // 2 * np.uint16(257) + np.uint16(128)], ignore)  # half a level more
    (dark,) = upscale([lr // 2 * np.uint16(257)], ignore)
    assert (darker != dark).mean() > 0.5


def test_input_of_the_generator_is_never_larger_than_a_tile():
    generator = Nearest()
    images = [image_of(30, 50, seed) for seed in range(5)]
    for image, sr in zip(images, Upscaler(generator, CPU, tile_px=64)(images, ignore), strict=True):
        assert (sr == nearest(image)).all()
    assert generator.calls == [(2, 30, 50), (2, 30, 50), (1, 30, 50)]  # 64 x 64 px hold two and a half
    generator.calls.clear()
    (sr,) = Upscaler(generator, CPU, tile_px=64)([image_of(130, 200)], ignore)
    assert (sr == nearest(image_of(130, 200))).all()
    assert max(max(call) for call in generator.calls) == 64


@pytest.mark.parametrize("free", [4 * 10**7, 10**8, 2 * 10**8])
def test_tile_size_follows_from_half_of_the_free_memory(monkeypatch, free):
    class Wide(Nearest):
        """Takes 16 SR pixels of 3 + 12 + 3 channels of 4 bytes for each LR pixel at once."""

        def forward(self, lr):
            sr = super().forward(lr)
            features = sr.repeat(1, 4, 1, 1)
            return sr + features[:, :3]

    monkeypatch.setattr(sed_sr.utils.evaluation.upscaler, "free_bytes", lambda device: free)
    generator, lr = Wide(), image_of(500, 520)
    Upscaler(generator, CPU)([lr], ignore)
    side = max(max(call) for call in generator.calls)
    left = free - 16 * lr.nbytes  # for the result
    expected = (left / 2 / (16 * 4 * (3 + 12 + 3))) ** 0.5
    assert max(64, 0.9 * expected - 8) <= side <= max(64, expected)


@pytest.mark.parametrize("whole", [False, True])
def test_large_image_is_upscaled_whole_if_the_generator_prefers_that_and_memory_suffices(whole):
    generator = Nearest()
    generator.prefers_whole_images = whole
    Upscaler(generator, CPU)([image_of(520, 520)], ignore)
    assert ((1, 520, 520) in generator.calls) == whole


def test_precision_that_the_generator_does_not_support_is_refused():
    generator = Nearest()
    generator.precisions = ("fp32", "fp16")
    with pytest.raises(UserError, match="precision bf16 is not supported by Nearest; use fp32"):
        Upscaler(generator, CPU, precision="bf16")


def test_self_ensemble_of_an_equivariant_network_equals_the_network():
    lr = image_of(20, 30)
    generator = Nearest()
    (sr,) = Upscaler(generator, CPU, self_ensemble=True)([lr], ignore)
    assert (sr == nearest(lr)).all()
    assert sorted(set(generator.calls)) == [(1, 20, 30), (1, 30, 20)]
    assert len(generator.calls) == 8


def test_self_ensemble_is_the_mean_over_the_symmetries_of_the_square():
    """Compared with explicit transposition and flips, for an operator that none of them preserves."""
    ramp = torch.linspace(0, 1, 7)[:, None] * torch.linspace(1, 3, 5) ** 2

    def generator(lr):
        return lr * (ramp if lr.shape[-2:] == (7, 5) else ramp.flatten().view(5, 7))

    lr = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    made = []
    for transposed in (False, True):
        for dims in ([], [2], [3], [2, 3]):
            image = lr.flip(dims)
            image = image.transpose(2, 3) if transposed else image
            sr = generator(image)
            made.append((sr.transpose(2, 3) if transposed else sr).flip(dims))
    torch.testing.assert_close(self_ensembled(generator, lr), torch.stack(made).mean(0))


def test_bf16_is_close_to_float32(rrdb):
    images = [image_of(33, 47)]
    (full,), (half,) = (Upscaler(rrdb, CPU, precision=precision)(images, ignore) for precision in ("fp32", "bf16"))
    difference = np.abs(full.astype(int) - half)
    assert full.std() > 10
    assert 0 < difference.mean() < 1
    assert difference.max() <= 4


def test_fp16_on_a_cpu_is_refused_before_anything_is_upscaled(rrdb):
    with pytest.raises(UserError, match=r"fp16.*needs a GPU"):
        Upscaler(rrdb, CPU, precision="fp16")


@pytest.mark.parametrize("self_ensemble", [False, True])
@pytest.mark.parametrize("size", [(50, 60), (100, 150)], ids=["whole", "tiles"])
def test_replayed_graphs_give_the_same_images(rrdb, recorders, size, self_ensemble):
    """Results are compared at the end: none may share memory with a later replay."""
    images = [image_of(*size, seed) for seed in range(2 * WARM_UP_CALLS)]
    made = []
    for new_recorder in (None, FakeRecorder):
        upscale = Upscaler(rrdb, CPU, tile_px=64, self_ensemble=self_ensemble, new_recorder=new_recorder)
        made.append([sr for image in images for sr in upscale([image], ignore)])
    assert all((ordinary == replayed).all() for ordinary, replayed in zip(*made, strict=True))
    (recorder,) = recorders()
    whole, tiles = [(1, 50, 60, 3)], [(1, 60, 62, 3), (1, 60, 64, 3), (1, 64, 62, 3), (1, 64, 64, 3)]
    assert sorted(recorder.shapes) == (whole if size == (50, 60) else tiles)


def test_replays_use_weights_that_change_in_place(rrdb, recorders):
    """As in training, between validations."""
    generator, images = copy.deepcopy(rrdb), [image_of(30, 40)]
    upscale = Upscaler(generator, CPU, new_recorder=FakeRecorder)
    for _ in range(WARM_UP_CALLS + 2):
        (before,) = upscale(images, ignore)
    assert recorders()[0].shapes
    generator.conv_last.bias.data += 0.1
    (after,) = upscale(images, ignore)
    (expected,) = Upscaler(generator, CPU)(images, ignore)
    assert (after == expected).all()
    assert (after != before).any()


def test_graphs_are_dropped_if_memory_does_not_suffice(recorders):
    lr, generator, notes = image_of(130, 200), Nearest(), []
    upscale = Upscaler(generator, CPU, new_recorder=FakeRecorder)
    for _ in range(WARM_UP_CALLS + 1):
        upscale([lr], notes.append)
    assert recorders()[0].shapes == [(1, 130, 200, 3)]
    generator.most_px = 64 * 64
    for _ in range(WARM_UP_CALLS + 1):
        (sr,) = upscale([lr], notes.append)
        assert (sr == nearest(lr)).all()
    assert notes == ["out of memory on cpu: upscaling continues in tiles of 64 px"]
    *dropped, last = recorders()
    assert dropped == [None] * 2  # of the whole image, and of tiles of 88 px
    assert (1, 64, 64, 3) in last.shapes


def test_graphs_are_freed_with_their_upscaler(recorders):
    """Without garbage collection, so that the memory of the GPU is available to training."""
    upscale = Upscaler(Nearest(), CPU, new_recorder=FakeRecorder)
    for _ in range(WARM_UP_CALLS + 1):
        upscale([image_of(20, 30)], ignore)
    gc.disable()
    try:
        del upscale
        assert recorders() == [None]
    finally:
        gc.enable()


def test_generator_that_cannot_be_recorded_is_run_without_graphs_with_one_warning():
    class Refusing(FakeRecorder):
        def record(self, function, inputs):
            raise RuntimeError("operation not permitted when stream is capturing")

    lr, notes = image_of(20, 30), []
    upscale = Upscaler(Nearest(), CPU, new_recorder=Refusing)
    for _ in range(WARM_UP_CALLS + 3):
        (sr,) = upscale([lr], notes.append)
        assert (sr == nearest(lr)).all()
    (note,) = notes
    assert "operation not permitted" in note


def test_weights_cast_once_give_the_same_image_as_autocast(rrdb):
    before = copy.deepcopy(rrdb.state_dict())
    made = []
    for new_recorder in (None, FakeRecorder):
        upscale = Upscaler(rrdb, CPU, precision="bf16", new_recorder=new_recorder)
        made += upscale([image_of(33, 47)], ignore)
    assert upscale.generator.conv_last.weight.dtype == torch.bfloat16
    assert (made[0] == made[1]).all()
    assert all(torch.equal(value, before[name]) for name, value in rrdb.state_dict().items())


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
def test_bicubic_in_tiles_is_imresize_bit_for_bit(height, width, seed):
    sed_sr.utils.evaluation.upscaler.BICUBIC_TILE_PX, tile_px = 24, sed_sr.utils.evaluation.upscaler.BICUBIC_TILE_PX
    try:
        lr = image_of(height, width, seed)
        (sr,) = bicubic(4)([lr], ignore)
    finally:
        sed_sr.utils.evaluation.upscaler.BICUBIC_TILE_PX = tile_px
    assert (sr == imresize(lr, scale=4)).all()


def test_after_running_out_of_memory_images_are_upscaled_in_smaller_tiles():
    lr = image_of(130, 200)
    generator, notes = Nearest(most_px=64 * 64), []
    upscale = Upscaler(generator, CPU)
    for _ in range(2):
        (sr,) = upscale([lr], notes.append)
        assert (sr == nearest(lr)).all()
        assert max(generator.calls[-1]) <= 64
    refused = [size for size in generator.calls if size[1] * size[2] > generator.most_px]
    assert refused == [(1, 130, 200), (1, 88, 88)]
    assert notes == ["out of memory on cpu: upscaling continues in tiles of 64 px"]


def test_batch_that_runs_out_of_memory_is_upscaled_image_by_image():
    images = [image_of(80, 80, seed) for seed in range(4)]
    generator, notes = Nearest(most_px=80 * 80), []
    for image, sr in zip(images, Upscaler(generator, CPU)(images, notes.append), strict=True):
        assert (sr == nearest(image)).all()
    assert generator.calls[-4:] == [(1, 80, 80)] * 4
    assert len(notes) == 1


def test_out_of_memory_is_raised_if_the_smallest_tile_does_not_fit():
    with pytest.raises(OutOfMemory, match="even in tiles of 64 px"):
        Upscaler(Nearest(most_px=60 * 60), CPU)([image_of(130, 200)], ignore)


def test_result_that_is_larger_than_the_memory_is_refused_before_it_is_computed(monkeypatch):
    monkeypatch.setattr(sed_sr.utils.evaluation.upscaler, "free_bytes", lambda device: 10**6)
    generator = Nearest()
    with pytest.raises(OutOfMemory, match=r"takes 0\.00125 GB of memory, but only 0\.001 GB are free"):
        Upscaler(generator, CPU)([image_of(130, 200)], ignore)
    assert generator.calls == []


def test_other_errors_of_the_network_are_passed_on():
    class Broken(Generator):
        scale = 4

        def forward(self, lr):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Upscaler(Broken(), CPU)([np.zeros((100, 100, 3), np.uint8)], ignore)


def test_process_that_really_runs_out_of_memory_gives_the_same_image():
    """The features of two layers take 250 MB for the whole image and 60 MB for a tile of 88 px; 150 MiB are free."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/scripts/out_of_memory.py", "150"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    note, difference = done.stdout.splitlines()
    assert "out of memory on cpu: upscaling continues in tiles of" in note
    assert int(difference) <= 1
