"""Warns in plain words when the figures of a GAN's training show an illness that is known."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

ACCURACIES = ("d_real_accuracy", "d_fake_accuracy")
WON = 0.995  # or more: both accuracies of a discriminator that wins,
WON_LINES = 10  # on so many log lines in a row

# Measured on healthy PSNR-oriented training of a small RRDB with batches of 4: from random weights, at a learning rate
# of 2e-4, colours were off by 10 levels after 100 steps, and by 2 until step 1,000. At 2e-3 the mean settled sooner,
# but single batches were off by 3 to 10 levels to the end, now up, now down, so that by chance alone 10 lines in a row
# had one sign and a mean of more than 2. A mean of 20 lines that is more than 5 of its standard errors from zero never
# occurred by chance.
DRIFTS = {"red": "drift_red", "green": "drift_green", "blue": "drift_blue"}
DRIFT_LEVELS = 2.0
DRIFT_LINES = 20
DRIFT_STANDARD_ERRORS = 5.0
SETTLED_STEPS = 2_000  # before them, colours are not looked at

HEALTHY = ""  # the warning of a symptom that is not there


class GanMonitor:
    """Looks at the figures of each log line, and warns once when a symptom appears; again if it had gone and returns.

    The figures are those of `models.diagnostics`. What a line lacks, or has not finite, leaves its symptom undecided,
    except a `share_gan` that is not finite, which is one.
    """

    def __init__(self) -> None:
        self._accuracies = deque(maxlen=WON_LINES)  # (step, the lower one of both)
        self._drifts = deque(maxlen=DRIFT_LINES)  # (step, levels of 255 of each channel)
        self._told = set()  # symptoms that were there at the last line that told

    def update(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """The warnings that the figures at this step give reason for; mostly none."""
        found = {
            "discriminator won": self._discriminator_won(step, figures),
            "no adversarial gradient": _no_adversarial_gradient(step, figures),
            "colours drift": self._colours_drift(step, figures),
        }
        warnings = [warning for symptom, warning in found.items() if warning and symptom not in self._told]
        self._told = {
            symptom for symptom, warning in found.items() if warning or (warning is None and symptom in self._told)
        }
        return warnings

    def state_dict(self) -> dict[str, Any]:
        """What the next warnings depend on, in plain containers."""
        return {"accuracies": list(self._accuracies), "drifts": list(self._drifts), "told": sorted(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`."""
        self._accuracies = deque(state["accuracies"], maxlen=WON_LINES)
        self._drifts = deque(state["drifts"], maxlen=DRIFT_LINES)
        self._told = set(state["told"])

    def _discriminator_won(self, step: int, figures: Mapping[str, float]) -> str | None:
        accuracies = _finite(figures, ACCURACIES)
        if accuracies is None:
            return None
        self._accuracies.append((step, min(accuracies)))
        if len(self._accuracies) < WON_LINES or min(accuracy for _, accuracy in self._accuracies) < WON:
            return HEALTHY
        return (
            f"the discriminator wins outright: at least {WON:.1%} of its logits, of real and of fake, were right on "
            f"each of {_last(self._accuracies)}; G then learns to fool it by artefacts, or nothing from it. "
            "Usually D learns too fast for G, or SR and HR differ in something besides texture, such as noise or "
            "compression in HR. Try a lower optimizer.discriminator_learning_rate or a higher losses.gan.weight, and "
            "look at the validation images"
        )

    def _colours_drift(self, step: int, figures: Mapping[str, float]) -> str | None:
        levels = _finite(figures, DRIFTS.values())
        if step <= SETTLED_STEPS or levels is None:
            return None
        self._drifts.append((step, levels))
        if len(self._drifts) < DRIFT_LINES:
            return None
        drifts = np.array([levels for _, levels in self._drifts])  # (lines, 3)
        means = drifts.mean(axis=0)
        standard_errors = drifts.std(axis=0, ddof=1) / math.sqrt(DRIFT_LINES)
        off = np.abs(means) > np.maximum(DRIFT_LEVELS, DRIFT_STANDARD_ERRORS * standard_errors)
        if not off.any():
            # Between ill and healthy nothing is decided, so that a drift about the limit is one episode.
            return HEALTHY if np.abs(means).max() < DRIFT_LEVELS / 2 else None
        channels = " and ".join(f"{name} by {means[i]:+.1f}" for i, name in enumerate(DRIFTS) if off[i])
        return (
            f"the colours of SR are off: {channels} levels of 255 from HR, on average of {_last(self._drifts)}. "
            "Usually the perceptual and adversarial losses, which hardly see an even tint, have too much weight beside "
            "the pixel loss, or LR and HR themselves differ in colour. Try a higher losses.pixel.weight, or lower "
            "losses.gan.weight and losses.perceptual.weight, and compare some LR images with their HR images"
        )


def _no_adversarial_gradient(step: int, figures: Mapping[str, float]) -> str | None:
    share = figures.get("share_gan")
    if share is None:
        return None
    if not math.isfinite(share):
        return (
            f"a gradient of the generator is not finite at step {step:,} (share_gan is {share}). Usually a forward "
            "pass in half precision overflows, or the training diverges; with fp16 a single time may be its loss "
            "scale finding its size. Try train.precision: bf16 or fp32, a lower optimizer.learning_rate, or "
            "optimizer.clip_grad_norm"
        )
    if share == 0:
        return (
            f"the generator gets no gradient from the adversarial loss at step {step:,} (share_gan is 0), so that it "
            "learns nothing from D. Usually D has collapsed and gives every image the same logits, or its logits are "
            "so large that the loss is flat there, or gradients vanish in half precision. Try a lower "
            "optimizer.discriminator_learning_rate, an earlier training state to go on from, and with fp16 "
            "train.precision: bf16 or fp32"
        )
    return HEALTHY


def _finite(figures: Mapping[str, float], names: Iterable[str]) -> list[float] | None:
    """The figures of these names; None if one is missing or not finite."""
    values = [figures.get(name, math.nan) for name in names]
    return values if all(math.isfinite(value) for value in values) else None


def _last(lines: deque) -> str:
    return f"the last {len(lines)} log lines (steps {lines[0][0]:,} to {lines[-1][0]:,})"
