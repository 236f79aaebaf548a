"""Precision settings: what each value of `precision` changes, and that it changes nothing else."""

import pytest
import torch
from torch import nn

from sed_sr.data.batches import Batch
from sed_sr.models import train_step
from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.models.losses.gan import GANLoss
from sed_sr.models.precision import WorkingCopy, convolutions, keep_in_autocast_type, resolved, without_tf32
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.spectral_norm import spectral_norm
from sed_sr.models.swinir import SwinIR
from sed_sr.models.train_step import Adversary, TrainStep
from tests.conftest import same


@pytest.mark.parametrize(
    ("device", "cuda", "capability", "expected"),
    [
        ("cpu", "13.0", (9, 0), "fp32"),
        ("cuda", "13.0", (9, 0), "tf32"),
        ("cuda", "13.0", (8, 0), "tf32"),
        ("cuda", "13.0", (7, 5), "fp32"),
        ("cuda", None, (9, 0), "fp32"),  # an AMD GPU
    ],
)
def test_auto_is_tf32_on_gpus_that_support_it(monkeypatch, device, cuda, capability, expected):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolved("auto", torch.device(device)) == expected
    assert resolved("bf16", torch.device(device)) == "bf16"


def settings_of_cudnn() -> tuple[bool, bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("precision", ["tf32", "fp32"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_tf32_applies_only_to_the_convolutions_of_the_networks(monkeypatch, precision, deterministic):
    """In forward and backward passes; not to matrix products, the optimiser, or code between steps."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    seen = {}

    def note(where):
        seen.setdefault(where, set()).add(settings_of_cudnn())

    generator = RRDBNet(features=8, blocks=1, growth=4)
    discriminator = PatchDiscriminator(semantic_channels=None, features=8)
    for name, network in (("G", generator), ("D", discriminator)):
        network.register_forward_pre_hook(lambda *_, name=name: note(f"{name} forward"))
        first = next(parameter for parameter in network.parameters() if parameter.dim() == 4)
        first.register_hook(lambda _, name=name: note(f"{name} backward"))
    optimizer = torch.optim.Adam(generator.parameters(), fused=True)
    optimizer.register_step_pre_hook(lambda *_: note("elsewhere"))
    step = TrainStep(
        generator=generator,
        generator_optimizer=optimizer,
        adversary=Adversary(
            discriminator, torch.optim.Adam(discriminator.parameters(), fused=True), GANLoss("vanilla")
        ),
        weights={"pixel": 1.0, "gan": 0.1},
        precision=precision,
        deterministic=deterministic,
    )
    step(Batch(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 32, 32)))
    note("elsewhere")
    inside = {(precision == "tf32", not deterministic, False)}
    networks = {f"{name} {direction}": inside for name in "GD" for direction in ("forward", "backward")}
    assert seen == {**networks, "elsewhere": {(False, False, False)}}


def test_settings_are_restored_after_an_error():
    before = settings_of_cudnn()
    with pytest.raises(ValueError, match="inside"), convolutions(tf32=not before[0], autotune=not before[1]):
        raise ValueError("inside")
    assert settings_of_cudnn() == before


def test_without_tf32_disables_tf32_and_restores_the_settings(tf32_allowed):
    before = settings_of_cudnn()
    with without_tf32():
        assert settings_of_cudnn() == (False, before[1], False)
    assert settings_of_cudnn() == before
    with pytest.raises(ValueError, match="inside"), without_tf32():
        raise ValueError("inside")
    assert settings_of_cudnn() == before


def test_frozen_weights_in_autocast_dtype_give_the_same_result():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(x)
        keep_in_autocast_type(network, "bf16")
        assert torch.equal(network(x), expected)
    assert {name: value.dtype for name, value in network.named_parameters()} == {
        **{f"{layer}.{part}": torch.bfloat16 for layer in (0, 3) for part in ("weight", "bias")},
        **{f"1.{part}": torch.float32 for part in ("weight", "bias")},
    }


def test_working_copy_casts_what_autocast_would_and_shares_the_rest():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), spectral_norm(nn.Conv2d(8, 4, 1)))
    working = WorkingCopy(network, "bf16")
    convolution, norm, normalised = working.network
    assert {value.dtype for value in convolution.parameters()} == {torch.bfloat16}
    assert norm.weight is network[1].weight
    assert norm.running_mean is network[1].running_mean
    assert normalised.parametrizations.weight.original is network[2].parametrizations.weight.original
    with torch.no_grad():
        network[0].weight.mul_(2)
    assert not torch.equal(convolution.weight, network[0].weight.bfloat16())
    working.refresh()
    assert torch.equal(convolution.weight, network[0].weight.bfloat16())
    assert working.leaf_of(network[0].weight) is convolution.weight
    assert working.leaf_of(network[1].weight) is network[1].weight
    assert WorkingCopy(network, "tf32").network is network


@pytest.mark.parametrize("generator", ["rrdb", "swinir"])
def test_step_with_weights_cast_once_equals_the_step_under_autocast(generator, monkeypatch):
    """Bit-exact: weights, moments and all terms."""

    def steps() -> tuple:
        torch.manual_seed(0)
        network = RRDBNet(features=8, blocks=1, growth=4)
        if generator == "swinir":
            network = SwinIR(embed_dim=8, depths=(2,), heads=(2,), window=4, drop_path=0.0)
        discriminator = UNetDiscriminator(semantic_channels=8, features=8)
        step = TrainStep(
            generator=network,
            generator_optimizer=torch.optim.Adam(network.parameters(), fused=True),
            adversary=Adversary(
                discriminator,
                torch.optim.Adam(discriminator.parameters(), fused=True),
                GANLoss("vanilla"),
                extractor=lambda hr: torch.nn.functional.avg_pool2d(hr, 16).mean(1, keepdim=True).repeat(1, 8, 1, 1),
            ),
            weights={"pixel": 1.0, "gan": 0.1},
            precision="bf16",
        )
        batch = Batch(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32))
        terms = [step(batch, watch=number == 1).terms for number in range(3)]
        return terms, step.state_dict()

    terms, state = steps()
    monkeypatch.setattr(train_step, "WorkingCopy", lambda network, precision: WorkingCopy(network, "fp32"))
    terms_of_autocast, state_of_autocast = steps()
    for ours, theirs in zip(terms, terms_of_autocast, strict=True):
        # One step computes the norms of single gradients from bfloat16, the other from float32.
        for name in [name for name in ours if name.startswith("share_")]:
            assert ours.pop(name) == pytest.approx(theirs.pop(name), rel=1e-5)
        assert ours == theirs
    assert same(state, state_of_autocast)
