"""How fast a run is and where its time goes, and the line that the log has for a step."""

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

DIAGNOSTICS = ("d_real", "d_fake", "share_", "drift_")  # starts of the names of terms that are no losses
MIN_SHARE = 5e-4  # of the time; smaller shares are left out of the log line


class Clock:
    """Measures how the main thread spends its time, and the steps per second without validation and saving.

    It never waits for a GPU, which works on while the main thread waits for data or copies a state. The time of a step
    ends when its gradients are there (see TrainStep); the update of the last step before a lap counts up to the lap.
    The times of waiting for data and of saving are therefore upper bounds.
    """

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        """Start a new lap at this step."""
        self._start_s, self._start_step = time.perf_counter(), step
        self._spent_s: dict[str, float] = dict.fromkeys(("data_wait", "step", "validation", "save"), 0.0)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time in this block to `part`."""
        entered_s = time.perf_counter()
        yield
        self._spent_s[part] += time.perf_counter() - entered_s

    def measure_waiting(self, batches: Iterable[dict]) -> Generator[dict, None, None]:
        """Yield from `batches`, and add the time until each of them arrives to `data_wait`."""
        iterator = iter(batches)
        while True:
            with self.measure("data_wait"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def lap(self, step: int) -> tuple[float, dict[str, float]]:
        """Return steps per second and the seconds spent on each part and on the rest, and start a new lap."""
        elapsed_s = time.perf_counter() - self._start_s
        spent_s = {**self._spent_s, "other": elapsed_s - sum(self._spent_s.values())}
        steps_per_s = (step - self._start_step) / (elapsed_s - spent_s["validation"] - spent_s["save"])
        self.restart(step)
        return steps_per_s, spent_s


def format_step(
    step: int,
    total_steps: int,
    terms: dict[str, float],
    *,
    learning_rate: float,
    steps_per_s: float,
    images_per_s: float,
    spent_s: dict[str, float],
) -> str:
    """The log line of a step.

    Args:
        terms: losses and diagnostics of the step, as in `Outcome.terms`.
        spent_s: seconds since the last line, as from `Clock.lap`.
    """
    remaining = timedelta(seconds=round((total_steps - step) / steps_per_s))
    return (
        f"step {step:,}/{total_steps:,}  {format_losses(terms)}"
        f"  | lr {learning_rate:.3g}  {steps_per_s:.3g} steps/s  {images_per_s:.3g} images/s"
        f"  {format_time_shares(spent_s)}  ETA {remaining}"
    )


def format_losses(terms: dict[str, float]) -> str:
    """Losses, logits and accuracy of D, gradient norms, the share of each loss in G's gradient, colour drift."""
    losses = [name for name in terms if not name.startswith(DIAGNOSTICS) and not name.endswith("_gradient")]
    parts = [f"{name} {terms[name]:.4g}" for name in losses]
    parts += [
        f"D({kind}) {terms[f'd_{kind}']:.3g} ({terms[f'd_{kind}_accuracy']:.0%} right)"
        for kind in ("real", "fake")
        if f"d_{kind}" in terms
    ]
    parts += [
        f"|grad {letter}| {terms[name]:.3g}"
        for letter, name in (("G", "generator_gradient"), ("D", "discriminator_gradient"))
        if name in terms
    ]
    shares = {name.removeprefix("share_"): value for name, value in terms.items() if name.startswith("share_")}
    if shares:
        parts.append("shares of |grad G| " + " ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    parts.append("colour " + " ".join(f"{terms[f'drift_{channel}']:+.1f}" for channel in ("red", "green", "blue")))
    return "  ".join(parts)


def format_time_shares(spent_s: dict[str, float]) -> str:
    """The share of each part in the time; parts other than data and step only from MIN_SHARE up."""
    total_s = sum(spent_s.values())
    shares = {part.removesuffix("_wait"): seconds / total_s for part, seconds in spent_s.items()}
    shown = {part: share for part, share in shares.items() if part in ("data", "step") or share >= MIN_SHARE}
    return " ".join(f"{part} {share:.1%}" for part, share in shown.items())
