"""Each warning is triggered by real networks that have its problem, and healthy networks trigger none."""

import copy
import json
import math
import re
from functools import reduce

import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sed_sr.models.diagnostics import accuracy, colour_drift, gradient_shares
from sed_sr.models.discriminators import PatchDiscriminator
from sed_sr.models.losses.gan import GANLoss
from sed_sr.models.rrdb import RRDBNet
from sed_sr.options.schema import Options
from sed_sr.utils.training.gan_monitor import DRIFT_LINES, SETTLED_STEPS, WON, WON_LINES, GanMonitor

ADVERSARIAL = GANLoss("vanilla")
PHOTO = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1) / 255  # (3, 300, 451) float in [0, 1]


def batches(count, *, seed):
    """So many LR (8, 3, 8, 8) and HR (8, 3, 32, 32)."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        corners = torch.randint(300 - 32, (8, 2), generator=draw).tolist()
        hr = torch.stack([PHOTO[:, top : top + 32, left : left + 32] for top, left in corners])
        yield F.avg_pool2d(hr, 4), hr


def adversary():
    torch.manual_seed(0)
    return PatchDiscriminator(semantic_channels=None, features=8)


def values_of(generator, batch, discriminator=None, optimizers=()):
    """One step of the networks whose optimisers are given. Returns the values of its log line."""
    lr, hr = batch
    sr = generator(lr)
    terms, values = {"pixel": F.l1_loss(sr, hr)}, colour_drift(sr, hr)
    for optimizer in optimizers:
        optimizer.zero_grad()
    if discriminator is not None:
        discriminator.requires_grad_(False)
        terms["gan"] = 0.01 * ADVERSARIAL.generator(discriminator(sr))
        shares = gradient_shares(terms, generator.parameters())
        values |= {f"share_{name}": share for name, share in shares.items()}
        discriminator.requires_grad_(True)
    sum(terms.values()).backward()
    if discriminator is not None:
        real, fake = discriminator(torch.cat((hr, sr.detach()))).chunk(2)
        ADVERSARIAL.discriminator(real, fake).backward()
        values |= accuracy(real, fake, ADVERSARIAL.boundary)
    for optimizer in optimizers:
        optimizer.step()
    return {name: figure.item() for name, figure in values.items()}


@pytest.fixture(scope="module")
def trained():
    """A generator trained PSNR-oriented from random weights, and the values of each step. Not to be changed."""
    torch.manual_seed(0)
    generator, steps = RRDBNet(features=8, blocks=1, growth=4), 400
    adam = torch.optim.Adam(generator.parameters(), lr=4e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    lines = []
    for batch in batches(steps, seed=0):
        lines.append(values_of(generator, batch, optimizers=[adam]))
        falling.step()
    return generator, lines


def warnings_of(monitor, lines, *, first_step=SETTLED_STEPS + 1, every_steps=1):
    """(step, warning) of each warning for these lines."""
    steps = range(first_step, first_step + len(lines) * every_steps, every_steps)
    return [(step, warning) for step, line in zip(steps, lines, strict=True) for warning in monitor.update(step, line)]


def test_healthy_run_gives_no_warning(trained):
    generator, lines = trained
    assert all(abs(line["drift_green"]) > 2 for line in lines[:5])  # as at the start of every run
    monitor = GanMonitor()
    assert warnings_of(monitor, lines, first_step=1) == []
    generator, discriminator = copy.deepcopy(generator), adversary()
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-4) for network in (generator, discriminator)]
    lines = [values_of(generator, batch, discriminator, optimizers) for batch in batches(2 * DRIFT_LINES, seed=1)]
    assert warnings_of(monitor, lines) == []


def test_discriminator_that_trains_alone_wins():
    torch.manual_seed(0)
    generator, discriminator = RRDBNet(features=8, blocks=1, growth=4), adversary()  # SR is nearly black
    optimizers = [torch.optim.Adam(discriminator.parameters(), lr=1e-3)]
    lines = [values_of(generator, batch, discriminator, optimizers) for batch in batches(30, seed=2)]
    won = [min(line["d_real_accuracy"], line["d_fake_accuracy"]) >= WON for line in lines]
    first = next(i for i in range(len(won)) if all(won[i : i + WON_LINES]))
    ((step, warning),) = warnings_of(GanMonitor(), lines, first_step=10, every_steps=10)
    assert step == 10 * (first + WON_LINES)
    assert "discriminator wins" in warning
    assert f"{WON_LINES} log lines (steps {10 * (first + 1)} to {step})" in warning


def test_discriminator_that_ignores_its_input_gives_g_no_gradient(trained):
    generator, _ = trained
    constant, healthy = adversary(), adversary()
    torch.nn.init.zeros_(constant.conv4.weight)
    lines = [
        values_of(generator, batch, discriminator)
        for batch, discriminator in zip(
            batches(6, seed=3), [healthy, constant, constant, healthy, constant, constant], strict=True
        )
    ]
    warnings = warnings_of(GanMonitor(), lines, first_step=1_000, every_steps=1_000)
    assert [step for step, _ in warnings] == [2_000, 5_000]  # the second after it had recovered
    assert all("no gradient from the adversarial loss" in warning for _, warning in warnings)


def test_gradient_overflow_is_reported(trained):
    diverged = copy.deepcopy(trained[0])
    torch.nn.init.constant_(diverged.conv_last.weight, 1e38)
    (line,) = (values_of(diverged, batch, adversary()) for batch in batches(1, seed=3))
    ((_, warning),) = warnings_of(GanMonitor(), [line])
    assert "not finite" in warning


def test_generator_with_an_offset_in_one_channel_drifts(trained):
    tinted = copy.deepcopy(trained[0])
    with torch.no_grad():
        tinted.conv_last.bias[1] -= 6 / 255
    healthy, ill = (
        [values_of(generator, batch) for batch in batches(DRIFT_LINES, seed=4)] for generator in (trained[0], tinted)
    )
    (step, warning), (_, again) = warnings_of(
        GanMonitor(), [*ill, *ill, *healthy, *ill]
    )  # again after it had recovered
    assert step == SETTLED_STEPS + DRIFT_LINES
    assert f"to {step:,})" in warning
    assert float(re.search(r"green by (\S+) levels of 255 from HR", warning)[1]) == pytest.approx(-6, abs=1)
    for text in (warning, again):
        assert re.findall("(red|green|blue) by", text) == ["green"]


WINNING = {"d_real_accuracy": 1.0, "d_fake_accuracy": 0.996}
EVEN = {"d_real_accuracy": 0.8, "d_fake_accuracy": 0.7}
TINTED = {"drift_red": 0.1, "drift_green": 3.5, "drift_blue": -4.0}
TRUE = {"drift_red": 0.1, "drift_green": -0.2, "drift_blue": 0.3}
ILL = {**WINNING, **TINTED, "share_gan": 0.0}


@pytest.mark.parametrize("name", WINNING)
def test_discriminator_that_calls_everything_real_or_everything_fake_has_not_won(name):
    assert warnings_of(GanMonitor(), [{**WINNING, name: 0.0}] * WON_LINES) == []


def test_drift_that_oscillates_around_the_limit_is_reported_once():
    monitor = GanMonitor()
    lines = [{**TRUE, "drift_red": level} for level in [2.2] * 30 + [1.7] * 30 + [2.2] * 30]
    assert len(warnings_of(monitor, lines)) == 1


def test_random_colour_offsets_are_no_drift():
    draw = torch.Generator().manual_seed(0)
    lines = [dict.fromkeys(TRUE, level) for level in (5 * torch.randn(1000, generator=draw)).tolist()]
    assert warnings_of(GanMonitor(), lines) == []


repeated_lines = st.tuples(
    st.sampled_from(
        [
            {**EVEN, **TRUE},
            {**EVEN, **TRUE, "share_gan": 0.2},
            {**WINNING, **TINTED},
            {**EVEN, **TINTED},
            {**WINNING, **TRUE},
            {**WINNING, **TRUE, "share_gan": 0.0},
            {**EVEN, **TRUE, "share_gan": math.nan},
            {**WINNING, **TINTED, "d_real_accuracy": math.nan, "drift_red": math.inf},
            {**TRUE},
        ]
    ),
    st.integers(1, 30),
)


@settings(deadline=None)
@given(st.lists(repeated_lines, max_size=10), st.floats(0, 1))
def test_resumed_run_warns_as_an_uninterrupted_one(stretches, part):
    lines = [line for line, count in stretches for _ in range(count)]
    cut = round(part * len(lines))
    whole = warnings_of(GanMonitor(), lines)
    before, after = GanMonitor(), GanMonitor()
    warnings = warnings_of(before, lines[:cut])
    after.load_state_dict(json.loads(json.dumps(before.state_dict(), allow_nan=False)))
    assert warnings + warnings_of(after, lines[cut:], first_step=SETTLED_STEPS + 1 + cut) == whole


@settings(deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(ILL, st.floats(width=32))), max_size=5))
def test_any_value_is_accepted(lines):
    monitor = GanMonitor()
    warnings_of(monitor, lines * DRIFT_LINES)
    json.dumps(monitor.state_dict(), allow_nan=False)


def test_psnr_oriented_training_is_warned_of_colours_only():
    ((_, warning),) = warnings_of(GanMonitor(), [TINTED] * DRIFT_LINES)
    assert "green by +3.5 and blue by -4.0 levels" in warning


def test_every_option_that_a_warning_names_exists():
    options = Options(name="any", generator={"type": "rrdb"}, discriminator={"type": "patch"})
    warnings = warnings_of(GanMonitor(), [ILL] * DRIFT_LINES) + warnings_of(GanMonitor(), [{"share_gan": math.nan}])
    named = {name for _, warning in warnings for name in re.findall(r"[a-z]+(?:\.[a-z_]+)+", warning)}
    assert {name.split(".")[0] for name in named} == {"optimizer", "losses", "train"}
    for name in named:
        reduce(getattr, name.split("."), options)
