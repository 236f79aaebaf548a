"""Warns of known failures of GAN training, by the values that are logged."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

ACCURACIES = ("d_real_accuracy", "d_fake_accuracy")
WON = 0.995  # the discriminator has won if both accuracies are at least this
WON_LINES = 10  # on as many log lines in a row

# Measured in healthy PSNR-oriented training of a small RRDB with batches of 4. From random weights, at a learning rate
# of 2e-4, colours were off by 10 levels after 100 steps, and by 2 until step 1,000. At 2e-3 the mean settled sooner,
# but single batches were off by 3 to 10 levels to the end, in both directions, so that by chance 10 lines in a row had
# one sign and a mean of more than 2. A mean of 20 lines more than 5 standard errors from zero never occurred by chance.
DRIFTS = {"red": "drift_red", "green": "drift_green", "blue": "drift_blue"}
DRIFT_LEVELS = 2.0
DRIFT_LINES = 20
DRIFT_STANDARD_ERRORS = 5.0
SETTLED_STEPS = 2_000  # before this step, colours are not checked

NO_WARNING = ""  # where the values show that a problem is absent; None: they are not sufficient to decide


class GanMonitor:
    """Checks the values of each log line. Warns once when a problem appears, and again if it returns later.

    The values are those of `models.diagnostics`. A problem whose values are missing or not finite stays as it was,
    except that a `share_gan` that is not finite is a problem itself.
    """

    def __init__(self) -> None:
        self._accuracies = deque(maxlen=WON_LINES)  # (step, the lower of the two accuracies)
        self._drifts = deque(maxlen=DRIFT_LINES)  # (step, drift of each channel in levels of 255)
        self._reported = set()  # problems that were present when last decided

    def update(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Check the values of a step and return the warnings, usually none."""
        found = {
            "discriminator won": self._discriminator_won(step, values),
            "no adversarial gradient": _no_adversarial_gradient(step, values),
            "colours drift": self._colours_drift(step, values),
        }
        warnings = [warning for problem, warning in found.items() if warning and problem not in self._reported]
        self._reported = {
            problem for problem, warning in found.items() if warning or (warning is None and problem in self._reported)
        }
        return warnings

    def state_dict(self) -> dict[str, Any]:
        """The state in plain containers."""
        return {"accuracies": list(self._accuracies), "drifts": list(self._drifts), "told": sorted(self._reported)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a `state_dict()`."""
        self._accuracies = deque(state["accuracies"], maxlen=WON_LINES)
        self._drifts = deque(state["drifts"], maxlen=DRIFT_LINES)
        self._reported = set(state["told"])

    def _discriminator_won(self, step: int, values: Mapping[str, float]) -> str | None:
        accuracies = _finite(values, ACCURACIES)
        if accuracies is None:
            return None
        self._accuracies.append((step, min(accuracies)))
        if len(self._accuracies) < WON_LINES or min(accuracy for _, accuracy in self._accuracies) < WON:
            return NO_WARNING
        return (
            f"the discriminator wins: at least {WON:.1%} of its logits, of real and of fake images, were right on each "
            f"of {_last(self._accuracies)}; G then learns artefacts from it, or nothing. "
            "Usually D learns too fast for G, or SR and HR differ in something besides texture, such as noise or "
            "compression in HR. Try a lower optimizer.discriminator_learning_rate or a higher losses.gan.weight, and "
            "check the validation images"
        )

    def _colours_drift(self, step: int, values: Mapping[str, float]) -> str | None:
        levels = _finite(values, DRIFTS.values())
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
            # Hysteresis: a drift that oscillates around the limit is reported once.
            return NO_WARNING if np.abs(means).max() < DRIFT_LEVELS / 2 else None
        channels = " and ".join(f"{name} by {means[i]:+.1f}" for i, name in enumerate(DRIFTS) if off[i])
        return (
            f"the colours of SR are off: {channels} levels of 255 from HR, on average of {_last(self._drifts)}. "
            "Usually the perceptual and adversarial losses, which are insensitive to a uniform tint, have too much "
            "weight compared with the pixel loss, or LR and HR themselves differ in colour. Try a higher "
            "losses.pixel.weight, or lower losses.gan.weight and losses.perceptual.weight, and compare some LR images "
            "with their HR images"
        )


def _no_adversarial_gradient(step: int, values: Mapping[str, float]) -> str | None:
    share = values.get("share_gan")
    if share is None:
        return None
    if not math.isfinite(share):
        return (
            f"a gradient of the generator is not finite at step {step:,} (share_gan is {share}). Usually a forward "
            "pass in half precision overflows, or the training diverges; with fp16, a single occurrence may be the "
            "loss scale adapting. Try train.precision: bf16 or fp32, a lower optimizer.learning_rate, or "
            "optimizer.clip_grad_norm"
        )
    if share == 0:
        return (
            f"the generator gets no gradient from the adversarial loss at step {step:,} (share_gan is 0), so that it "
            "learns nothing from D. Usually D has collapsed and gives every image the same logits, or its logits are "
            "so large that the loss is flat there, or gradients vanish in half precision. Try a lower "
            "optimizer.discriminator_learning_rate, an earlier training state to resume from, and with fp16 "
            "train.precision: bf16 or fp32"
        )
    return NO_WARNING


def _finite(values: Mapping[str, float], names: Iterable[str]) -> list[float] | None:
    """The values of these names; None if any of them is missing or not finite."""
    found = [values.get(name, math.nan) for name in names]
    return found if all(map(math.isfinite, found)) else None


def _last(lines: deque) -> str:
    return f"the last {len(lines)} log lines (steps {lines[0][0]:,} to {lines[-1][0]:,})"
