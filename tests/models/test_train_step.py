"""The training step: the paper's objectives, accumulation, clipping, averaging, non-finite values, precision."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from sed_sr.data.batches import Batch
from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.models.losses.artifact import artifact_loss
from sed_sr.models.losses.gan import GANLoss
from sed_sr.models.losses.perceptual import PerceptualLoss
from sed_sr.models.losses.pixel import l1_loss
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.models.train_step import Adversary, TrainStep

CHANNELS = 64  # of the stand-in for semantic features


class Extractor(nn.Module):
    """A stand-in for CLIP: means of 16x16 blocks, repeated into channels."""

    def forward(self, hr: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return F.avg_pool2d(hr, 16).mean(1, keepdim=True).repeat(1, CHANNELS, 1, 1)


def make(
    discriminator=PatchDiscriminator,
    *,
    kind="vanilla",
    optimizer=torch.optim.Adam,
    lr=1e-3,
    r1_weight=None,
    weights=None,
    **more,
) -> TrainStep:
    torch.manual_seed(0)
    generator = RRDBNet(features=8, blocks=1, growth=4)
    adversary = discriminator(semantic_channels=CHANNELS, features=16)
    return TrainStep(
        generator=generator,
        generator_optimizer=optimizer(generator.parameters(), lr=lr, fused=True),
        adversary=Adversary(
            adversary,
            optimizer(adversary.parameters(), lr=lr, fused=True),
            GANLoss(kind),
            extractor=Extractor(),
            r1_weight=r1_weight,
        ),
        weights={"pixel": 1.0, "gan": 0.5, **(weights or {})},
        **more,
    )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(2, 3, 16, 16, generator=generator), torch.rand(2, 3, 64, 64, generator=generator))


def parameters(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_step_is_gradient_descent_on_the_stated_objectives(batch):
    """Against an independent implementation of the two objectives in the module's docstring."""
    lr, hr, _ = batch
    step = make(optimizer=torch.optim.SGD, lr=0.1)
    generator, adversary = copy.deepcopy(step.generator), copy.deepcopy(step.discriminator)
    step(batch)

    semantic = step.extractor(hr)
    sr = generator(lr)
    fooled = adversary(sr, semantic)
    ((sr - hr).abs().mean() + 0.5 * -torch.log(torch.sigmoid(fooled)).mean()).backward()
    for parameter, moved in zip(generator.parameters(), step.generator.parameters(), strict=True):
        torch.testing.assert_close(moved, parameter - 0.1 * parameter.grad)

    adversary.zero_grad()
    logits = adversary(torch.cat((hr, sr.detach())), torch.cat((semantic, semantic)))
    real, fake = logits.chunk(2)
    (-torch.log(torch.sigmoid(real)).mean() - torch.log(1 - torch.sigmoid(fake)).mean()).backward()
    for parameter, moved in zip(adversary.parameters(), step.discriminator.parameters(), strict=True):
        torch.testing.assert_close(moved, parameter - 0.1 * parameter.grad)


@pytest.mark.parametrize("discriminator", [PatchDiscriminator, UNetDiscriminator])
def test_r1_adds_its_gradient_to_that_of_the_discriminator(batch, discriminator):
    """The updates with and without R1 differ by the learning rate times the gradient of its definition."""
    moved = []
    for r1_weight in (None, 0.3):
        step = make(discriminator, optimizer=torch.optim.SGD, lr=0.1, r1_weight=r1_weight)
        step.discriminator.eval()  # without power iterations, which an additional pass would advance
        adversary, terms = copy.deepcopy(step.discriminator), step(batch).terms
        moved.append(parameters(step.discriminator))
    hr = batch.hr.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        logits = adversary(hr, step.extractor(hr))
    (gradient,) = torch.autograd.grad(logits.sum(), hr, create_graph=True)
    penalty = (gradient**2).sum() / (2 * len(hr))
    (0.3 * penalty).backward()
    assert terms["r1"] == pytest.approx(penalty.item(), rel=1e-4)
    for parameter, without, with_r1 in zip(adversary.parameters(), *moved, strict=True):
        expected = 0 if parameter.grad is None else -0.1 * parameter.grad
        torch.testing.assert_close(with_r1 - without, torch.zeros_like(without) + expected, rtol=1e-3, atol=1e-6)


def test_r1_that_is_not_finite_skips_the_step(batch):
    batch.hr[0, 0, 0, 0] = math.nan
    assert "r1" in make(r1_weight=0.1)(batch).broken


def test_feature_matching_adds_its_gradient_to_that_of_the_generator(batch):
    """It compares with the target of the adversarial loss, and its HR features are constants."""
    batch = batch._replace(sharp=batch.hr.sqrt())
    step = make(optimizer=torch.optim.SGD, lr=0.1, weights={"feature_matching": 0.7}, sharpened=["gan"])
    step.discriminator.eval()
    generator, adversary = copy.deepcopy(step.generator), copy.deepcopy(step.discriminator)
    terms = step(batch).terms

    semantic, sr = step.extractor(batch.hr), generator(batch.lr)
    logits, features = adversary(sr, semantic, return_features=True)
    _, targets = adversary(batch.sharp, semantic, return_features=True)
    matching = sum((a - b.detach()).abs().mean() for a, b in zip(features, targets, strict=True)) / len(features)
    assert terms["feature_matching"] == pytest.approx(matching.item(), rel=1e-5)
    ((sr - batch.hr).abs().mean() + 0.5 * F.softplus(-logits).mean() + 0.7 * matching).backward()
    for parameter, moved in zip(generator.parameters(), step.generator.parameters(), strict=True):
        torch.testing.assert_close(moved, parameter - 0.1 * parameter.grad)


class BatchNormDiscriminator(nn.Module):
    """A small plain discriminator with BatchNorm, and one logit for each image."""

    def __init__(self, *, semantic_channels, features):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, features, 4, stride=4), nn.BatchNorm2d(features)
        self.linear = nn.Linear(features, 1)

    def forward(self, image, semantic=None):
        return self.linear(F.leaky_relu(self.norm(self.conv(image)), 0.2).mean(dim=(2, 3)))


def test_real_and_fake_do_not_share_the_statistics_of_batch_norm(batch):
    """Against an independent implementation of ESRGAN's step: D gets real, then fake, each in a batch of its own."""
    lr, hr, _ = batch
    step = make(BatchNormDiscriminator, kind="relativistic", optimizer=torch.optim.SGD, lr=0.1)
    generator, adversary = copy.deepcopy(step.generator), copy.deepcopy(step.discriminator)
    step(batch)

    def bce(logits, real):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    sr = generator(lr)
    real, fake = adversary(hr).detach(), adversary(sr)
    gan = (bce(real - fake.mean(), False) + bce(fake - real.mean(), True)) / 2
    ((sr - hr).abs().mean() + 0.5 * gan).backward()
    for parameter, moved in zip(generator.parameters(), step.generator.parameters(), strict=True):
        torch.testing.assert_close(moved, parameter - 0.1 * parameter.grad)
    adversary.zero_grad()
    real, fake = adversary(hr), adversary(sr.detach())
    ((bce(real - fake.mean(), True) + bce(fake - real.mean(), False)) / 2).backward()
    for parameter, moved in zip(adversary.parameters(), step.discriminator.parameters(), strict=True):
        torch.testing.assert_close(moved, parameter - 0.1 * parameter.grad)
    for expected, statistics in zip(adversary.buffers(), step.discriminator.buffers(), strict=True):
        torch.testing.assert_close(statistics, expected)


@pytest.mark.parametrize("discriminator", [PatchDiscriminator, BatchNormDiscriminator])
def test_discriminator_without_batch_norm_gets_real_and_fake_in_one_batch(batch, discriminator):
    step, sizes = make(discriminator), []
    step.discriminator.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    step(batch)
    assert sizes == ([2, 4] if discriminator is PatchDiscriminator else [2, 2, 2])


def test_artifact_term_compares_with_the_average_of_before_the_step(batch):
    """On SwinIR in training mode: the averaged network has no stochastic depth and does not draw random numbers."""
    torch.manual_seed(0)
    generator = SwinIR(embed_dim=12, depths=(2,), heads=(2,), window=4, drop_path=0.5)
    seen = {}

    def loss(sr, hr, sr_ema):
        seen.update(sr=sr, hr=hr, sr_ema=sr_ema)
        return artifact_loss(sr, hr, sr_ema)

    step = TrainStep(
        generator=generator,
        generator_optimizer=torch.optim.SGD(generator.parameters(), lr=0.5, fused=True),
        weights={"pixel": 1.0, "artifact": 1.0},
        ema_losses={"artifact": loss},
        ema_decay=0.5,
        sharpened=["artifact"],
    )
    batch = batch._replace(sharp=batch.hr.sqrt())
    for number in range(3):
        average = copy.deepcopy(step.ema).eval()
        torch.manual_seed(number)
        outcome = step(batch, watch=number == 2)
        with torch.no_grad():
            assert torch.equal(seen["sr_ema"], average(batch.lr))
        torch.manual_seed(number)
        assert not torch.equal(seen["sr"], seen["sr_ema"])
        assert torch.equal(seen["hr"], batch.sharp)
        expected = artifact_loss(seen["sr"], seen["hr"], seen["sr_ema"])
        assert outcome.terms["artifact"] == pytest.approx(expected.item(), rel=1e-6)
        assert not seen["sr_ema"].requires_grad
    assert step.generator.training
    assert outcome.terms["share_artifact"] > 0
    assert outcome.terms["share_artifact"] + outcome.terms["share_pixel"] == pytest.approx(1)


@pytest.mark.parametrize("sharpened", ["pixel", "perceptual", "gan"])
def test_each_loss_uses_the_target_of_the_options(batch, sharpened):
    """A term changes with the sharpened HR if and only if it compares with it."""

    def terms_of(sharp):
        step = make(image_losses={"pixel": l1_loss, "perceptual": F.mse_loss}, sharpened=[sharpened])
        step.weights = {"pixel": 1.0, "perceptual": 1.0, "gan": 0.5}
        return step(batch._replace(sharp=sharp)).terms

    one, other, plain = terms_of(batch.hr.sqrt()), terms_of(batch.hr.square()), terms_of(batch.hr)
    seen_in = {"pixel": "pixel", "perceptual": "perceptual", "gan": "d_real"}
    for term, figure in seen_in.items():
        assert (one[figure] == other[figure]) == (term != sharpened), term
    unsharpened = make(image_losses={"pixel": l1_loss, "perceptual": F.mse_loss})
    unsharpened.weights = {"pixel": 1.0, "perceptual": 1.0, "gan": 0.5}
    expected = unsharpened(batch).terms
    assert plain == expected


@pytest.mark.parametrize("kind", ["vanilla", "lsgan", "hinge", "relativistic"])
@pytest.mark.parametrize("discriminator", [PatchDiscriminator, UNetDiscriminator])
def test_both_networks_change_and_every_term_is_finite(batch, kind, discriminator):
    step = make(discriminator, kind=kind)
    before = parameters(step.generator), parameters(step.discriminator)
    terms = step(batch).terms
    assert {"pixel", "gan", "d_loss", "d_real", "d_fake", "generator_gradient", "drift_red"} <= terms.keys()
    assert all(math.isfinite(term) for term in terms.values())
    for old, network in zip(before, (step.generator, step.discriminator), strict=True):
        assert any(not torch.equal(a, b) for a, b in zip(old, parameters(network), strict=True))


def test_weight_of_the_adversarial_term_does_not_change_the_discriminators_gradient(batch):
    """D must not get gradients from G's objective."""
    norms = []
    for weight in (0.5, 50.0):
        step = make()
        step.weights = {"pixel": 1.0, "gan": weight}
        norms.append(step(batch).terms["discriminator_gradient"])
        assert all(parameter.requires_grad for parameter in step.discriminator.parameters())
    assert norms[0] == norms[1]


def test_adversarial_gradient_reaches_the_generator(batch):
    """Two steps that differ only in the weight of the adversarial term must update G differently."""
    moved = []
    for weight in (0.0, 1.0):
        step = make(optimizer=torch.optim.SGD)
        step.weights = {"pixel": 1.0, "gan": weight}
        step(batch)
        moved.append(torch.cat([parameter.flatten() for parameter in parameters(step.generator)]))
    assert (moved[0] - moved[1]).abs().max() > 0


@pytest.mark.parametrize("discriminator", [PatchDiscriminator, BatchNormDiscriminator])
def test_state_restores_the_step_exactly(batch, discriminator):
    """N + M steps equal N steps, saving, loading and M steps; with the artifact loss, which depends on the average."""

    def start():
        step = make(
            discriminator, ema_decay=0.9, schedule=lambda step: 0.5**step, ema_losses={"artifact": artifact_loss}
        )
        step.weights["artifact"] = 1.0
        return step

    whole, first, second = start(), start(), start()
    for _ in range(4):
        whole(batch)
    for _ in range(2):
        first(batch)
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(state)
    for _ in range(2):
        second(batch)
    for name in ("generator", "discriminator", "ema"):
        both = [getattr(step, name).state_dict() for step in (whole, second)]
        assert all(torch.equal(both[0][key], both[1][key]) for key in both[0]), name


def test_learning_rate_is_that_of_the_options_after_a_restart(batch):
    step = make(lr=1e-3)
    step(batch)
    again = make(lr=1e-5)
    again.load_state_dict(step.state_dict())
    again(batch)
    assert again.optimizers["generator"].param_groups[0]["lr"].item() == pytest.approx(1e-5)


def test_schedule_reaches_both_optimisers(batch):
    step = make(lr=1e-3, schedule=lambda steps_done: 0.5**steps_done)
    for steps_done in range(3):
        step(batch)
        rates = {name: optimizer.param_groups[0]["lr"].item() for name, optimizer in step.optimizers.items()}
        rate = pytest.approx(1e-3 * 0.5**steps_done)
        assert rates == {"generator": rate, "discriminator": rate}


def test_accumulated_gradient_equals_that_of_one_large_batch(batch):
    """Losses are means, so the mean over two halves is the mean over the whole batch."""
    lr, hr, _ = batch
    gradients = []
    for parts in ([batch], [Batch(lr[:1], hr[:1]), Batch(lr[1:], hr[1:])]):
        step = make(optimizer=torch.optim.SGD, batches_per_step=len(parts))
        step.discriminator.eval()  # the power iteration would advance in every forward pass
        terms = step(*parts).terms
        gradients.append(
            {f"{which}.{name}": p.grad for which, net in networks(step) for name, p in net.named_parameters()}
        )
    assert terms["pixel"] == pytest.approx(F.l1_loss(make().generator(lr), hr).item(), rel=1e-4)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def networks(step: TrainStep) -> list[tuple[str, nn.Module]]:
    return [("generator", step.generator), ("discriminator", step.discriminator)]


@pytest.mark.parametrize("limit", [1e-3, 1e9])
def test_gradients_are_clipped_to_the_limit_and_never_enlarged(batch, limit):
    """With SGD, the update is the learning rate times the clipped gradient."""
    step = make(optimizer=torch.optim.SGD, lr=0.5, clip_grad_norm=limit)
    before = {which: parameters(net) for which, net in networks(step)}
    terms = step(batch).terms
    for which, net in networks(step):
        moved = [(old - new).flatten() for old, new in zip(before[which], parameters(net), strict=True)]
        length = torch.cat(moved).norm() / 0.5
        assert length.item() == pytest.approx(min(terms[f"{which}_gradient"], limit), rel=1e-2)


def multiply_output(network: nn.Module, factor: float) -> RemovableHandle:
    """Multiplies the network's output by a factor until the handle is removed."""
    return network.register_forward_hook(lambda _, inputs, output: output * factor)


@pytest.mark.parametrize(
    ("factor", "discriminator"),
    [(float("nan"), PatchDiscriminator), (float("inf"), PatchDiscriminator), (float("nan"), BatchNormDiscriminator)],
)
def test_non_finite_step_updates_nothing_and_the_next_one_does(batch, factor, discriminator):
    step = make(discriminator, ema_decay=0.9)
    step(batch)
    before = copy.deepcopy(step.state_dict())
    poison = multiply_output(step.generator, factor)
    outcome = step(batch)
    assert {"pixel", "generator_gradient", "d_loss"} <= set(outcome.broken)
    assert set(outcome.broken_here) == {"pixel", "gan", "d_loss"}
    after = step.state_dict()
    assert (before.pop("step"), after.pop("step")) == (1, 2)
    assert weights_and_moments(before) == weights_and_moments(after)
    poison.remove()
    assert step(batch).broken == ()
    assert weights_and_moments(step.state_dict()) != weights_and_moments(before)


def weights_and_moments(state) -> list:
    """Everything that an update changes. D's power iteration advances in every forward pass and is left out."""
    if isinstance(state, dict):
        return [
            part
            for name, part in sorted(state.items(), key=lambda item: str(item[0]))
            if "._" not in str(name)
            for part in weights_and_moments(part)
        ]
    return [state.numpy().tobytes() if isinstance(state, torch.Tensor) else state]


def test_infinite_gradient_of_a_finite_loss_is_detected(batch):
    """The square root at zero has the value 0 and an infinite derivative."""
    step = make()
    step.weights = {"pixel": 1.0, "perceptual": 1.0, "gan": 0.5}
    step.image_losses = {"pixel": l1_loss, "perceptual": lambda sr, hr: (sr - sr.detach()).square().sum().sqrt()}
    before = parameters(step.generator)
    assert step(batch).broken == ("generator_gradient",)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(step.generator), strict=True))


def test_too_large_loss_scale_is_halved_until_steps_update(batch):
    """With fp16, gradients overflow at first. Such steps update nothing and are not reported as broken."""
    step = make(precision="fp16")
    step.weights = {"pixel": 1e4, "gan": 0.5}
    scales, moved = [step.scaler.get_scale()], False
    while not moved:
        before = parameters(step.generator)
        outcome = step(batch)
        moved = any(not torch.equal(a, b) for a, b in zip(before, parameters(step.generator), strict=True))
        assert outcome.broken == ()
        assert moved == math.isfinite(outcome.terms["generator_gradient"])
        scales.append(step.scaler.get_scale())
    assert len(scales) > 3
    assert scales[:-1] == [scales[0] / 2**skipped for skipped in range(len(scales) - 1)]
    assert scales[-1] == scales[-2]
    assert "pixel" in step(batch._replace(hr=batch.hr * float("nan"))).broken


def test_shares_add_up_to_one_and_watching_changes_nothing(batch):
    watched, plain = make(), make()
    terms = watched(batch, watch=True).terms
    plain(batch)
    assert terms["share_pixel"] + terms["share_gan"] == pytest.approx(1)
    assert terms["share_gan"] > 0
    assert all(
        torch.equal(a, b) for a, b in zip(parameters(watched.generator), parameters(plain.generator), strict=True)
    )


def test_average_follows_its_definition(batch):
    step = make(ema_decay=0.75)
    expected = parameters(step.generator)
    for _ in range(3):
        step(batch)
        now = parameters(step.generator)
        expected = [0.75 * average + 0.25 * value for average, value in zip(expected, now, strict=True)]
    for average, value in zip(step.deployed_generator.parameters(), expected, strict=True):
        torch.testing.assert_close(average.detach(), value)


def test_average_of_an_earlier_version_is_loaded(batch):
    """Earlier versions saved torch's AveragedModel."""
    step = make(ema_decay=0.75)
    step(batch)
    state = step.state_dict()
    averaged = {f"module.{name}": value for name, value in state["ema"].items()}
    again = make(ema_decay=0.75)
    again.load_state_dict({**state, "ema": {"n_averaged": torch.tensor(1), **averaged}})
    assert all(torch.equal(a, b) for a, b in zip(step.ema.parameters(), again.ema.parameters(), strict=True))


def test_bfloat16_step_is_close_to_the_float32_step(batch):
    """The objective differs by the rounding of bfloat16 (8 bits) only, perceptual loss included."""
    terms = {}
    for precision in ("fp32", "bf16"):
        losses = {"pixel": l1_loss, "perceptual": PerceptualLoss(layer_weights={"conv2_2": 1.0})}
        step = make(precision=precision, image_losses=losses)
        step.weights = {**step.weights, "perceptual": 1.0}
        terms[precision] = step(batch).terms
    for name in ("pixel", "perceptual", "gan", "d_loss"):
        assert terms["bf16"][name] == pytest.approx(terms["fp32"][name], rel=0.03, abs=0.01)
