"""CUDA graphs: a recorded function computes the same as the function itself.

No GPU is needed: a tape, which notes operations and repeats them on the same memory, stands in for CUDA graphs.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.random_step import random_recipe, random_step
from sed_sr.data.batches import Batch
from sed_sr.models.cuda_graph import MAX_GRAPHS, WARM_UP_CALLS, GraphedFunction
from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.models.losses.artifact import artifact_loss
from sed_sr.models.losses.gan import GANLoss
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.models.train_step import Adversary, TrainStep
from sed_sr.models.vgg_discriminator import VGGDiscriminator
from tests.conftest import same


class Tape(TorchDispatchMode):
    """Notes all operations in a context; `play` repeats them on the same memory, without the Python code."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, result in self.operations:
            if not func.is_view:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old is not new:  # in-place operations return their input
                        old.copy_(new)


class TapeRecorder:
    def __init__(self, *, waits: bool = False) -> None:
        self.recorded, self.waits = 0, waits

    def warm_up(self, function, inputs):
        return function(*inputs), self.waits

    def record(self, function, inputs):
        self.recorded += 1
        with Tape() as tape:
            result = function(*inputs)
        played = [True]  # the recording computes the result once; a GPU records without computing

        def replay():
            if not played[0]:
                tape.play()
            played[0] = False

        return replay, result


def never(message: str) -> None:
    raise AssertionError(message)


def test_replay_has_the_effects_of_the_function_and_runs_no_python():
    calls, total = [], torch.zeros(3)

    def accumulate(x):
        calls.append(len(calls))
        total.add_(x)
        return 2 * total

    graphed = GraphedFunction(accumulate, name="it", recorder=TapeRecorder(), warn=never)
    for number in range(1, 8):
        result = graphed(torch.full((3,), float(number)))
        expected = number * (number + 1) / 2
        assert total.tolist() == [expected] * 3
        assert result.tolist() == [2 * expected] * 3
    assert len(calls) == WARM_UP_CALLS + 1


def test_each_shape_is_recorded_once_up_to_the_maximum():
    recorder = TapeRecorder()
    graphed = GraphedFunction(lambda x: x + 1, name="it", recorder=recorder, warn=never)
    for _ in range(WARM_UP_CALLS + 2):
        for size in range(1, MAX_GRAPHS + 3):
            assert torch.equal(graphed(torch.arange(size)), torch.arange(size) + 1)
    assert recorder.recorded == MAX_GRAPHS


def test_function_that_cannot_be_recorded_runs_unrecorded_and_warns_once():
    class Refuses(TapeRecorder):
        def record(self, function, inputs):
            self.recorded += 1
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            finally:
                raise RuntimeError("the capture failed")  # as when leaving the context

    recorder, warnings = Refuses(), []
    graphed = GraphedFunction(lambda x: x + 1, name="the step", recorder=recorder, warn=warnings.append)
    for _ in range(WARM_UP_CALLS + 5):
        assert graphed(torch.zeros(1)).item() == 1
    assert recorder.recorded == len(warnings) == 1
    assert warnings[0].startswith("the step cannot be recorded")
    assert warnings[0].endswith("(operation not permitted when stream is capturing)")


def test_function_that_waits_for_the_device_is_not_recorded():
    """On a GPU, recording it would fail, and leave older PyTorch in a broken state."""
    recorder, warnings = TapeRecorder(waits=True), []
    graphed = GraphedFunction(lambda x: x + 1, name="the step", recorder=recorder, warn=warnings.append)
    for _ in range(WARM_UP_CALLS + 2):
        assert graphed(torch.zeros(1)).item() == 1
    assert recorder.recorded == 0
    assert warnings == [
        "the step cannot be recorded as a CUDA graph and runs slower without it (it waits for the device)"
    ]


def test_forgotten_recordings_are_made_again_without_warm_up():
    first, second = TapeRecorder(), TapeRecorder()
    graphed = GraphedFunction(lambda x: 2 * x, name="it", recorder=first, warn=never)
    for number in range(WARM_UP_CALLS + 2):
        graphed(torch.full((2,), float(number)))
    graphed.forget(second)
    for number in range(3):
        assert graphed(torch.full((2,), float(number))).tolist() == [2.0 * number] * 2
    assert (first.recorded, second.recorded) == (1, 1)


def make_step(generator, discriminator, kind="vanilla", r1_weight=None, weights=None, **more) -> TrainStep:
    torch.manual_seed(0)
    generator, adversary = generator(), discriminator(semantic_channels=8, features=8)
    return TrainStep(
        generator=generator,
        generator_optimizer=torch.optim.Adam(generator.parameters(), lr=1e-3, fused=True),
        adversary=Adversary(
            adversary,
            torch.optim.Adam(adversary.parameters(), lr=1e-3, fused=True),
            GANLoss(kind),
            extractor=None
            if isinstance(adversary, VGGDiscriminator)
            else lambda hr: torch.nn.functional.avg_pool2d(hr, 16).mean(1, keepdim=True).repeat(1, 8, 1, 1),
            r1_weight=r1_weight,
        ),
        weights={"pixel": 1.0, "gan": 0.5, **(weights or {})} | dict.fromkeys(more.get("ema_losses", ()), 1.0),
        ema_decay=0.5,
        clip_grad_norm=0.1,
        schedule=lambda steps_done: 0.5**steps_done,
        **more,
    )


def rrdb() -> RRDBNet:
    return RRDBNet(features=8, blocks=1, growth=4)


def vgg(*, semantic_channels: int, features: int) -> VGGDiscriminator:
    return VGGDiscriminator(features=features)


def swinir() -> SwinIR:
    return SwinIR(embed_dim=8, depths=(2,), heads=(2,), window=4, drop_path=0.5)


@pytest.mark.parametrize(
    ("generator", "discriminator", "more"),
    [
        (rrdb, PatchDiscriminator, {}),
        (swinir, UNetDiscriminator, {"kind": "relativistic", "sharpened": ("pixel",)}),
        (rrdb, UNetDiscriminator, {"batches_per_step": 2, "precision": "bf16"}),
        (rrdb, PatchDiscriminator, {"r1_weight": 0.1, "weights": {"feature_matching": 1.0}}),
        (swinir, vgg, {"kind": "relativistic", "precision": "bf16", "ema_losses": {"artifact": artifact_loss}}),
    ],
)
def test_recorded_step_equals_the_unrecorded_step(generator, discriminator, more):
    """Bit-exact, with changing learning rates, a watched step, a skipped step and a request to stop."""
    recorders = []
    plain, recorded = make_step(generator, discriminator, **more), make_step(generator, discriminator, **more)
    recorded.record(lambda: recorders.append(TapeRecorder()) or recorders[-1], warn=never)
    draw = torch.Generator().manual_seed(1)
    lr_px = 32 if discriminator is vgg else 8
    for number in range(1, 10):
        batches = [
            Batch(*(torch.rand(2, 3, side, side, generator=draw) for side in (lr_px, 4 * lr_px, 4 * lr_px)))
            for _ in range(plain.batches_per_step)
        ]
        if not plain.sharpened:
            batches = [batch._replace(sharp=None) for batch in batches]
        if number == 7:
            batches[0].hr[0, 0, 0, 0] = float("nan")
        outcomes = []
        for step in (plain, recorded):
            torch.manual_seed(number)
            outcomes.append(step(*batches, watch=number == 6, stop=number == 8))
        assert str(outcomes[0].terms) == str(outcomes[1].terms)  # as text, nan equals nan
        assert bool(outcomes[1].broken) == (number == 7)
        assert outcomes[1].stop_requested == (number == 8)
        assert same(plain.state_dict(), recorded.state_dict()), number
    # Both parts, and again for and after the watched step, which frees all recordings.
    assert [recorder.recorded for recorder in recorders] == [2, 2]


RECIPES = [
    ("train_rrdb_psnr", "fp32"),
    ("train_rrdb_P+SeD", "bf16"),
    ("train_rrdb_U", "bf16"),
    ("train_rrdb_U+SeD_real", "fp32"),
    ("train_swinir_psnr_real", "bf16"),
    ("train_swinir_P", "fp32"),
    ("train_swinir_U+SeD", "bf16"),
    ("train_rrdb_ESRGAN", "bf16"),
    ("train_swinir_LDL", "fp32"),
]
# All losses that no recipe has.
LOSSES = {f"losses__{name}": {} for name in ("ms_ssim", "dists", "lpips", "focal_frequency", "feature_matching", "r1")}
TINY = {
    "rrdb": {"generator__blocks": 1},
    "swinir": {"generator__embed_dim": 12, "generator__depths": (2,), "generator__heads": (2,)},
}


@pytest.mark.parametrize(
    ("recipe", "precision", "losses"),
    [*((*recipe, {}) for recipe in RECIPES), ("train_rrdb_P+SeD", "bf16", LOSSES)],
)
def test_no_step_waits_for_the_device(recipe, precision, losses):
    """Fake tensors raise if a value is read."""
    options = random_recipe(
        f"options/{recipe}.yml",
        train__precision=precision,
        train__ema_decay=0.999,
        optimizer__clip_grad_norm=1.0,
        dataloader__batch_size=2,
        dataset__hr_patch_px=128 if recipe.endswith(("ESRGAN", "LDL")) else 64,
        **({"discriminator__features": 8} if "psnr" not in recipe else {}),
        **TINY[recipe.split("_")[1]],
        **losses,
    )
    step, batch = random_step(options, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        step(batch)
        outcome = step(batch, watch=True)
        with pytest.raises(DataDependentOutputException):
            outcome.broken  # noqa: B018
