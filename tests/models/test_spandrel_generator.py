"""Networks of spandrel as generators, against spandrel's own calls: upscaling, state dicts, training, refusals."""

import copy
import itertools
import math

import pytest
import spandrel
import torch
from torch import nn
from torch.nn import functional as F

from sed_sr.data.batches import Batch
from sed_sr.models.discriminators import PatchDiscriminator
from sed_sr.models.losses.gan import GANLoss
from sed_sr.models.spandrel_generator import SpandrelGenerator
from sed_sr.models.train_step import Adversary, TrainStep
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.upscaler import Upscaler
from tests.spandrel_networks import NETWORKS

pytestmark = [  # in spandrel
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element:UserWarning"),
    pytest.mark.filterwarnings("ignore:.saved_variables:DeprecationWarning"),
]

CHANNELS = 64  # of the stand-in for semantic features
CPU = torch.device("cpu")


class Extractor(nn.Module):
    """A stand-in for CLIP: means of 16x16 blocks, repeated into channels."""

    def forward(self, hr: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return F.avg_pool2d(hr, 16).mean(1, keepdim=True).repeat(1, CHANNELS, 1, 1)


@pytest.fixture(scope="module", params=NETWORKS)
def state(request):
    """The state dict of a network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[request.param]().state_dict()


def train_step_of(state, **options) -> TrainStep:
    """SeD with a PatchGAN discriminator."""
    generator = SpandrelGenerator(state)
    generator.prepare_for_training()
    discriminator = PatchDiscriminator(semantic_channels=CHANNELS, features=8)
    return TrainStep(
        generator=generator.train(),
        generator_optimizer=torch.optim.Adam(generator.parameters(), lr=1e-3, fused=True),
        adversary=Adversary(
            discriminator,
            torch.optim.Adam(discriminator.parameters(), lr=1e-3, fused=True),
            GANLoss("vanilla"),
            extractor=Extractor(),
        ),
        weights={"pixel": 1.0, "gan": 0.1},
        **options,
    )


def a_batch() -> Batch:
    return Batch(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 64, 64))


def theirs(state, lr):
    """SR as spandrel's users compute it."""
    return spandrel.ModelLoader().load_from_state_dict(dict(state))(lr.clone())


@pytest.mark.parametrize("size", [(16, 16), (13, 10), (17, 23)])
def test_upscaling_equals_spandrels_own_call(state, size):
    lr = torch.rand(1, 3, *size)
    given = lr.clone()
    with torch.inference_mode():
        sr = SpandrelGenerator(state).eval()(given)
    assert torch.equal(given, lr)  # RCAN changes the tensor that it is given
    torch.testing.assert_close(sr.clamp(0, 1), theirs(state, lr), rtol=0, atol=1e-6)


def test_one_step_of_sed_trains_both_networks_and_what_it_saves_loads_in_spandrel(state):
    step = train_step_of(state, ema_decay=0.5)
    unchanged = [copy.deepcopy(list(net.parameters())) for net in (step.generator, step.discriminator)]
    terms = [step(a_batch(), watch=watch).terms for watch in (True, False)]
    assert all(math.isfinite(value) for values in terms for value in values.values())
    for before, network in zip(unchanged, (step.generator, step.discriminator), strict=True):
        assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))

    saved = step.generator.state_dict()
    assert saved.keys() == state.keys()  # no prefix
    lr = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        sr = step.generator.eval()(lr).clamp(0, 1)
    torch.testing.assert_close(sr, theirs(saved, lr), rtol=0, atol=1e-6)
    assert not torch.allclose(sr, theirs(state, lr), atol=1e-4)


def test_training_goes_on_after_validation_and_resumes_exactly(state):
    """In evaluation mode, SPAN replaces parameters, which a recorded CUDA graph would not notice."""
    step = train_step_of(state, ema_decay=0.5)
    for network in (step.generator, step.ema):
        addresses = [parameter.data_ptr() for parameter in network.parameters()]
        Upscaler(network, CPU)([torch.zeros(9, 9, 3, dtype=torch.uint8).numpy()], print)
        network.train()
        for parameter, address in zip(network.parameters(), addresses, strict=True):
            assert parameter.data_ptr() == address or not parameter.requires_grad
    step(a_batch())
    resumed = train_step_of(state, ema_decay=0.5)
    resumed.load_state_dict(copy.deepcopy(step.state_dict()))
    batch = a_batch()
    for each in (step, resumed):
        torch.manual_seed(1)  # of stochastic depth
        each(batch)
    for name, part in step.state_dict()["ema"].items():
        torch.testing.assert_close(resumed.state_dict()["ema"][name], part, rtol=0, atol=0)


def test_merged_convolutions_of_span_are_neither_trained_nor_averaged():
    step = train_step_of(NETWORKS["SPAN"]().state_dict(), ema_decay=0.5)
    frozen = {name for name, parameter in step.generator.network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in step.generator.state_dict() if ".eval_conv." in name}
    for parameter in step.ema.parameters():
        parameter.data.fill_(7)
    step(a_batch())
    for name, average in step.ema.network.named_parameters():
        assert bool((average == 7).all()) == (name in frozen)


def test_images_of_any_size_give_sr_of_the_scale():
    generator = SpandrelGenerator(NETWORKS["DRCT"]().state_dict()).eval()  # sides of a multiple of 16
    for height, width in itertools.product((1, 5, 33), repeat=2):
        assert generator(torch.rand(1, 3, height, width)).shape == (1, 3, 4 * height, 4 * width)


def test_about_names_the_architecture_its_sizes_and_its_scale():
    assert SpandrelGenerator(NETWORKS["HAT"]().state_dict()).about == "HAT (medium, s64w8, 8nf, 12dim, 1conv), x4"
    assert SpandrelGenerator(NETWORKS["RGT"]().state_dict()).about == "RGT, x4"


def test_trial_changes_neither_buffers_nor_random_numbers_of_the_network():
    generator = SpandrelGenerator(NETWORKS["DAT"]().state_dict())  # it has batch normalisation
    before = copy.deepcopy(generator.state_dict())
    generator.prepare_for_training()
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())


def test_precisions_are_those_that_spandrel_states():
    assert SpandrelGenerator(NETWORKS["HAT"]().state_dict()).precisions == ("fp32", "tf32", "bf16")
    assert SpandrelGenerator(NETWORKS["SPAN"]().state_dict()).precisions == ("fp32", "tf32", "bf16", "fp16")


class Odd(nn.Module):
    """A network whose forward pass is a function of its only weight and the image."""

    def __init__(self, forward):
        super().__init__()
        self.odd_weight = nn.Parameter(torch.ones(1))
        self._forward = forward

    def forward(self, lr):
        return self._forward(self.odd_weight, lr)


class OddArchitecture(spandrel.Architecture):
    """An architecture added to spandrel, as spandrel_extra_arches adds its own; its descriptors are made by `load`."""

    def __init__(self):
        super().__init__(id="Odd", detect=lambda state: "odd_weight" in state)

    def describe(self, forward=None, **features):
        self.load = lambda state: spandrel.ImageModelDescriptor(
            Odd(forward),
            state,
            **{
                "architecture": self, "purpose": "SR", "tags": [], "supports_half": True, "supports_bfloat16": True,
                "scale": 2, "input_channels": 3, "output_channels": 3, **features,
            },
        )  # fmt: skip


OddArchitecture.__abstractmethods__ = frozenset()
ODD = OddArchitecture()
spandrel.MAIN_REGISTRY.add(spandrel.ArchSupport.from_architecture(ODD))


def odd(forward=None, **features) -> SpandrelGenerator:
    ODD.describe(forward, **features)
    return SpandrelGenerator({"odd_weight": torch.full((1,), 3.0)})


def enlarged(weight, lr):
    return weight * lr.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"purpose": "FaceSR"}, "Odd, x2, is for FaceSR; networks for SR and restoration are supported"),
        ({"input_channels": 1, "output_channels": 1}, "Odd, x2, maps 1 channels to 1; images here have 3 .RGB."),
    ],
)
def test_networks_for_other_purposes_and_channels_are_refused(features, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        odd(**features)


def test_weights_that_do_not_fit_their_own_architecture_are_one_sentence(state):
    """A layer is cut in half; spandrel raises whatever its code meets first."""
    name = next(name for name, value in reversed(state.items()) if value.dim() == 4 and len(value) > 1)
    with pytest.raises(UserError, match=r"^spandrel cannot load these weights: \w+Error: [^\n]+$"):
        SpandrelGenerator({**state, name: state[name][:, :0]})


def test_weights_of_an_unknown_architecture_are_one_sentence():
    with pytest.raises(UserError, match="no network that spandrel knows has weights of these names"):
        SpandrelGenerator({"x": torch.zeros(1)})


def in_training_a_tuple(weight, lr):
    return (enlarged(weight, lr), lr) if torch.is_grad_enabled() else enlarged(weight, lr)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda weight, lr: weight * lr, r"it returns \(2, 3, 16, 16\) instead of \(2, 3, 32, 32\)"),
        (lambda weight, lr: enlarged(weight, lr).view(3, -1)[5], r"IndexError: index 5 is out of bounds.*"),
    ],
)
def test_networks_that_cannot_upscale_are_refused(forward, message):
    odd(enlarged).check_upscaling()
    for check in (SpandrelGenerator.check_upscaling, SpandrelGenerator.prepare_for_training):
        with pytest.raises(UserError, match=f"^Odd, x2, cannot be used: {message}$"):
            check(odd(forward))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (in_training_a_tuple, r"it returns a tuple instead of \(2, 3, 32, 32\)"),
        (torch.no_grad()(enlarged), "its output has no gradient"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(forward, message):
    odd(enlarged).prepare_for_training()
    with pytest.raises(UserError, match=f"^Odd, x2, cannot be trained: {message}$"):
        odd(forward).prepare_for_training()
