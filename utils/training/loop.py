"""The training loop: one step after the other, with validation, saves and log lines in between."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import nn

from sed_sr.data.batches import Batch, TrainingPairs, batch_seed, mixed_seed
from sed_sr.data.benchmarks import Benchmark
from sed_sr.models.diagnostics import spectral_norms
from sed_sr.models.step_memory import Outcome
from sed_sr.models.train_step import TrainStep
from sed_sr.options.errors import UserError
from sed_sr.options.schema import Options
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.runtime.background import BackgroundJob
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import is_out_of_memory, peak_bytes, total_bytes
from sed_sr.utils.runtime.signals import StopSignal
from sed_sr.utils.training.gan_monitor import GanMonitor
from sed_sr.utils.training.progress import Clock, format_step
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.training.run_log import SilentLog
from sed_sr.utils.training.states import training_state, write_files
from sed_sr.utils.training.validation import Validator
from sed_sr.utils.weights import checkpoint


class PendingStep(NamedTuple):
    """A step whose outcome has not been read yet."""

    number: int
    outcome: Outcome
    names: list[str]  # of its images


class TrainLoop:
    """Repeats the training step until the last one, or until the run is asked to stop.

    Args:
        batches: yields {'hr', 'name'} and perhaps 'lr', with uint8 images, as many as the remaining steps take.
        pairs: makes training pairs from them, on the device.
    """

    def __init__(
        self,
        *,
        options: Options,
        train_step: TrainStep,
        batches: Iterable[dict],
        pairs: TrainingPairs,
        benchmarks: list[Benchmark],
        metrics: dict[str, Metric],
        folder: RunFolder,
        log: SilentLog,
        world: World,
        device: torch.device,
    ) -> None:
        self.options, self.train_step, self.batches, self.pairs = options, train_step, batches, pairs
        self.folder, self.log, self.world, self.device = folder, log, world, device
        self.samples = 0  # training pairs that all processes together have seen: the position in the data
        self.bad_steps = 0  # skipped in a row; meanwhile nothing is saved
        self.saved: tuple[int, int] | None = None  # (step, validated step) of the newest state
        self.stopping = False  # a process was asked to stop, or could not save
        # On a GPU a step is read after the next one has been launched, so that the GPU never waits for the loop.
        self.steps_behind = 1 if device.type == "cuda" else 0
        self.pending: deque[PendingStep] = deque()
        self.clock = Clock(self.step)
        self.monitor = GanMonitor()
        self.saving = BackgroundJob(warn=log.warning)
        self.validator = Validator(
            train_step,
            benchmarks=benchmarks,
            metrics=metrics,
            best_by=options.validation.best_by,
            folder=folder,
            log=log,
            world=world,
            device=device,
        )

    @property
    def step(self) -> int:
        """Optimisation steps done."""
        return self.train_step.step

    def state_dict(self) -> dict[str, Any]:
        """The state of the loop without its training step; the same on every process."""
        return {
            "samples": self.samples,
            **self.validator.state_dict(),
            "watch": self.monitor.state_dict(),  # states on disk have this name
            "processes": self.world.size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a `state_dict()`, after that of the training step."""
        self.samples = state["samples"]
        self.validator.load_state_dict(state)
        self.monitor.load_state_dict(state["watch"])
        self.saved = (self.step, self.validator.step)

    def run(self) -> None:
        """Train to the last step; validate, save and log on the way. A signal stops it after a step and a save."""
        train = self.options.train
        self.clock.restart(self.step)
        with (
            StopSignal(announce=self.world.main) as stop_signal,
            self.saving,
            self.log.progress(self.step, train.total_steps) as show_step,
            closing(self.clock.measure_waiting(self.batches)) as loaded,
        ):
            self._write_missing_weights()
            save_due = False  # stays set over skipped steps
            while True:
                if self._due(self.options.validation.every_steps) and self.validator.step != self.step:
                    self._validate(stop_signal)
                save_due |= self.stopping or self._due(train.save_every_steps) or self.validator.best_is_new
                if save_due:
                    save_due = not self._save()
                if self.stopping or self.step >= train.total_steps:
                    break
                batches = [next(loaded) for _ in range(self.train_step.batches_per_step)]
                self._train(batches, stop=stop_signal.requested or self.saving.failed)
                show_step(self.step)
            self._wait_for_save()
            if self.step < train.total_steps:
                self.log.info(
                    f"stopped after step {self.step:,} of {train.total_steps:,} as requested; --resume auto continues "
                    f"from {self._newest_state()}"
                )

    def dry_step(self) -> str:
        """Take one step, which changes the networks, and describe the memory that it takes.

        Raises:
            UserError: there is too little memory, or a loss or gradient is not finite.
        """
        batches = iter(self.batches)
        try:
            outcome = self._take_step([next(batches) for _ in range(self.train_step.batches_per_step)], watch=True)
        except StopIteration:
            return "no step is left to take"
        if outcome.broken:
            raise UserError(f"{', '.join(outcome.broken)} is not finite in the first step that the run would take")
        return f"{peak_bytes(self.device) / 1e9:.3g} GB of {total_bytes(self.device) / 1e9:.3g} GB on {self.device}"

    def _due(self, every_steps: int) -> bool:
        """Whether something that is done every so many steps, and after the last one, is due now."""
        return self.step > 0 and (self.step % every_steps == 0 or self.step == self.options.train.total_steps)

    def _train(self, batches: list[dict], *, stop: bool) -> None:
        """Take one step and log it where a log line is due."""
        # The random numbers of a step depend on its number alone, so that a run can be resumed at any step.
        torch.manual_seed(mixed_seed(self.options.seed, self.world.rank, self.step))
        watch = (self.step + 1) % self.options.train.watch_every_steps == 0
        with self.clock.measure("step"):
            outcome = self._take_step(batches, watch=watch, stop=stop)
        names = [name for batch in batches for name in batch["name"]]
        pairs = len(names) * self.world.size
        self.samples += pairs
        self.pending.append(PendingStep(self.step, outcome, names))
        self._read_outcomes(leave=self.steps_behind)
        if watch or self._due(self.options.train.log_every_steps):
            self._read_outcomes()
            self._log_step(outcome.terms, pairs_per_step=pairs)
        if watch and self.train_step.discriminator is not None:
            self._log_spectral_norms(self.train_step.discriminator)

    def _take_step(self, batches: list[dict], *, watch: bool, stop: bool = False) -> Outcome:
        try:
            return self.train_step(*self._make_pairs(batches), watch=watch, stop=stop)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise UserError(
            f"{self.device} ran out of memory in step {self.step + 1:,}: lower dataloader.batch_size (and raise "
            "train.accumulate_batches instead), or set train.precision: bf16"
        )

    def _make_pairs(self, batches: list[dict]) -> Iterator[Batch]:
        """The training pairs of a step, batch by batch, each with its own seed."""
        for number, batch in enumerate(batches, start=1):
            seed = batch_seed(self.options.seed, rank=self.world.rank, step=self.step, number=number)
            yield self.pairs(batch, seed=seed, device=self.device)

    def _read_outcomes(self, *, leave: int = 0) -> None:
        """Read the outcomes of pending steps, except those of the last `leave` ones, which may still be running."""
        while len(self.pending) > leave:
            pending = self.pending.popleft()
            with self.clock.measure("step"):  # waits for the GPU
                broken = pending.outcome.broken
            self.stopping |= pending.outcome.stop_requested
            if broken:
                self._report_skipped(pending)
            else:
                self.bad_steps = 0

    def _report_skipped(self, skipped: PendingStep) -> None:
        """Warn of a step that was skipped. Raises a UserError after `train.max_bad_steps` of them in a row."""
        self.bad_steps += 1
        limit, broken = self.options.train.max_bad_steps, ", ".join(skipped.outcome.broken)
        # Gradients are averaged over the processes: one that is not finite is so on all of them. A loss is not.
        reports = self.world.gather((skipped.outcome.broken_here, skipped.names))
        affected = [report for report in reports if report[0]] or reports
        files = ", ".join(name for _, names in affected for name in names)
        files += " or earlier ones, from the pool of pairs" * self.pairs.mixes_batches
        self.log.warning(
            f"step {skipped.number:,} was skipped: {broken} not finite, with the images {files} "
            f"({self.bad_steps} in a row; the run ends at {limit})"
        )
        if self.bad_steps >= limit:
            self._wait_for_save()
            with self.world.raise_together():
                raise UserError(
                    f"{limit} steps in a row were skipped (not finite: {broken}): the weights have probably diverged. "
                    f"The last good state is {self._newest_state()}. Use a lower optimizer.learning_rate, or "
                    "optimizer.clip_grad_norm, or check the images named above"
                )

    def _log_step(self, terms: dict[str, float], *, pairs_per_step: int) -> None:
        train = self.options.train
        steps_per_s, spent_s = self.clock.lap(self.step)
        spent_s = self.world.mean(spent_s)
        learning_rate, images_per_s = self.train_step.learning_rate(), steps_per_s * pairs_per_step
        line = format_step(
            self.step,
            train.total_steps,
            terms,
            learning_rate=learning_rate,
            steps_per_s=steps_per_s,
            images_per_s=images_per_s,
            spent_s=spent_s,
        )
        self.log.info(line)
        values = {**terms, "learning_rate": learning_rate, "images_per_s": images_per_s}
        self.log.scalars("train", self.step, values)
        self.log.scalars("time", self.step, {f"{part}_s": seconds for part, seconds in spent_s.items()})
        for warning in self.monitor.update(self.step, terms):
            self.log.warning(warning)

    def _log_spectral_norms(self, discriminator: nn.Module) -> None:
        norms = {name: norm.item() for name, norm in spectral_norms(discriminator).items()}
        largest = max(norms, key=lambda name: norms[name])
        self.log.info(f"step {self.step:,}  spectral norms of D: largest {norms[largest]:.3g} ({largest})")
        self.log.scalars("spectral_norm", self.step, norms)

    def _validate(self, stop_signal: StopSignal) -> None:
        self._read_outcomes()
        if self.stopping:
            return
        self.train_step.forget_recordings()  # a validation may need their memory
        with self.clock.measure("validation"):
            self.validator.validate(stop_requested=lambda: stop_signal.requested)
            self.stopping = self.world.any(stop_signal.requested)

    def _save(self) -> bool:
        """Start a save of the current step, unless it is saved already or was skipped. Returns whether it is saved.

        The files are written while training goes on. A save that is still running is waited for first.
        """
        self._read_outcomes()
        current = (self.step, self.validator.step)
        if self.saved == current:
            return True
        if self.bad_steps > 0 and self.step < self.options.train.total_steps:
            return False
        with self.clock.measure("save"):
            self._start_save()
        return True

    def _start_save(self) -> None:
        self._wait_for_save()
        if self.world.main:
            train = self.options.train
            state = checkpoint.snapshot(training_state(self.train_step, self.state_dict(), self.options))
            keep = {"keep_states": train.keep_states, "keep_weights": train.keep_weights}
            self.saving.start(write_files(state, self.folder, **keep, log=self.log))
        self.saved = (self.step, self.validator.step)

    def _wait_for_save(self) -> None:
        """Wait until the running save is on disk. Raises its UserError on every process."""
        with self.world.raise_together():
            self.saving.wait()

    def _write_missing_weights(self) -> None:
        """Save a state whose weights are missing: a kill came between the two, or the run branches off another one.

        This ends before the loader forks its processes: a fork should not happen while another thread works.
        """
        if self.world.any(self.world.main and self.step > 0 and not self.folder.weights(self.step).exists()):
            with self.clock.measure("save"):
                self._start_save()
                self._wait_for_save()

    def _newest_state(self) -> str:
        newest = next(iter(self.folder.saved_states()), None)
        return newest.name if newest else "none (nothing was saved before)"
