"""The loop around the training step: batches in; log lines, scores, pictures, weights and states out."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from sed_sr.data.batches import Batch, DegradedPairs, GivenPairs, batch_seed, mixed_seed
from sed_sr.data.benchmarks import Benchmark, BenchmarkImage
from sed_sr.data.files import link_file
from sed_sr.data.images import read_rgb
from sed_sr.data.tensors import to_array, to_float, to_tensor, to_uint8
from sed_sr.models.diagnostics import spectral_norms
from sed_sr.models.outcome import Outcome
from sed_sr.models.train_step import TrainStep
from sed_sr.options.errors import UserError
from sed_sr.options.schema import Options
from sed_sr.utils.evaluation.evaluate import BenchmarkScores, evaluate
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.upscaler import Upscaler
from sed_sr.utils.runtime.background import BackgroundJob
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import is_out_of_memory, peak_bytes, total_bytes
from sed_sr.utils.runtime.signals import wish_to_stop
from sed_sr.utils.training.gan_monitor import GanMonitor
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.training.run_log import SilentLog
from sed_sr.utils.visualization.pictures import MIN_PX, views
from sed_sr.utils.weights import checkpoint

PREVIEW_IMAGES = 4  # of each benchmark, in TensorBoard
MIN_SHARE = 5e-4  # of the time, that a line tells of
SHOWN_PX = 512  # side of the part of an image in which it is shown what D sees


class Taken(NamedTuple):
    """A step that was taken, of which the loop has not learnt yet how it went."""

    number: int
    outcome: Outcome
    names: list[str]  # of the images


class TrainLoop:
    """A run of the training step from where it stands to its last step, or until it is asked to stop.

    Args:
        batches: yields {'hr', 'name'} and perhaps 'lr', with uint8 images, as many as the steps that are left take.
        pairs: makes training pairs on the device from them.
    """

    def __init__(
        self,
        *,
        options: Options,
        train_step: TrainStep,
        batches: Iterable[dict],
        pairs: GivenPairs | DegradedPairs,
        benchmarks: list[Benchmark],
        metrics: dict[str, Metric],
        folder: RunFolder,
        log: SilentLog,
        world: World,
        device: torch.device,
    ) -> None:
        self.options, self.train_step, self.batches, self.pairs = options, train_step, batches, pairs
        self.benchmarks, self.metrics = benchmarks, metrics
        self.folder, self.log, self.world, self.device = folder, log, world, device
        self.samples = 0  # training pairs that all processes together have seen: the position in the data
        self.bad_steps = 0  # skipped in a row; while they last, nothing is saved
        self.validated = 0  # the last step after which scores were made
        self.scores: dict[str, dict[str, float]] = {}  # those: benchmark -> metric -> mean
        self.saved = None  # the step and the scored step of the newest state
        self.best: dict[str, Any] | None = None  # score, its metric and benchmark, its step
        self.stopping = False  # some process was asked to stop, or could not save
        # On a GPU the loop looks at a step when the next one has been launched, so that the GPU need not wait for it.
        self.steps_behind = 1 if device.type == "cuda" else 0
        self.taken: deque[Taken] = deque()
        self.watch = GanMonitor()
        self.saving = BackgroundJob(warn=log.warning)

    def state_dict(self) -> dict[str, Any]:
        """Where the loop stands, beside its training step; on every process alike."""
        return {
            "samples": self.samples,
            "validated": self.validated,
            "scores": self.scores,
            "best": self.best,
            "watch": self.watch.state_dict(),
            "processes": self.world.size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`. The best score counts if the options still ask for the same."""
        self.samples, self.validated = state["samples"], state["validated"]
        self.scores = state.get("scores", {})  # states did not always have them
        self.watch.load_state_dict(state["watch"])
        best = state["best"]
        if best is not None and (best["benchmark"], best["metric"]) == self._wanted_best():
            self.best = best
        self.saved = (self.step, self.validated)

    def run(self) -> None:
        """Train to the last step; validate, save and log on the way. A signal ends it after a step and a save."""
        train, total = self.options.train, self.options.train.total_steps
        clock = _Clock(self.step)
        with (
            wish_to_stop(speak=self.world.main) as wish,
            self.saving,
            self.log.progress(self.step, total) as advance,
            closing(clock.waiting_for(self.batches)) as loaded,
        ):
            if self.world.any(self.world.main and self.step > 0 and not self.folder.weights(self.step).exists()):
                # The run was killed between the state and its weights, or branches off from another one. That is over
                # before the loader's processes are forked: another thread should not be in the midst of something then.
                with clock.counting("save"):
                    self._save()
                    self._settle()
            late = False  # behind with a save
            while True:
                if self._due(self.options.validation.every_steps) and self.validated != self.step:
                    self._learn(clock)
                    if not self.stopping:
                        self.train_step.forget_recordings()  # their memory is of no use to a validation
                        # Compiled code is for the shapes of training; images of other sizes would compile it anew.
                        with clock.counting("validation"), torch.compiler.set_stance("force_eager"):
                            self._validate(wish)
                            self.stopping = self.world.any(wish() is not None)
                late = late or self.stopping or self._due(train.save_every_steps) or self._best_is_new()
                if late:
                    self._learn(clock)
                if late and (self.bad_steps == 0 or self.step >= total) and self.saved != (self.step, self.validated):
                    with clock.counting("save"):
                        self._save()
                    late = False
                if self.stopping or self.step >= total:
                    break
                batches = [next(loaded) for _ in range(train.accumulate_batches)]
                self._advance(batches, clock, stop=wish() is not None or self.saving.failed)
                advance(self.step)
            self._settle()
            if self.step < total:
                self.log.info(
                    f"stopped after step {self.step:,} of {total:,}, as asked; --resume auto goes on from "
                    f"{self._newest()}"
                )

    def dry_step(self) -> str:
        """Take one step, which moves the networks for good, and say how much memory that took.

        Raises:
            UserError: memory does not suffice, or something in the step is not finite.
        """
        batches = iter(self.batches)
        try:
            outcome = self._take_step([next(batches) for _ in range(self.options.train.accumulate_batches)], watch=True)
        except StopIteration:
            return "no step is left to take"
        if outcome.broken:
            raise UserError(f"{', '.join(outcome.broken)} is not finite in the first step that the run would take")
        return f"{peak_bytes(self.device) / 1e9:.3g} GB of {total_bytes(self.device) / 1e9:.3g} GB on {self.device}"

    @property
    def step(self) -> int:
        """Optimisation steps done."""
        return self.train_step.step

    def _due(self, every_steps: int) -> bool:
        """Whether what is done every so many steps, and after the last one, is to be done now."""
        return self.step > 0 and (self.step % every_steps == 0 or self.step == self.options.train.total_steps)

    def _advance(self, batches: list[dict], clock: "_Clock", *, stop: bool) -> None:
        """One step, and what there is to tell of it."""
        # Nothing random in a step depends on what came before it, so that a run can go on anywhere.
        torch.manual_seed(mixed_seed(self.options.seed, self.world.rank, self.step))
        watch = (self.step + 1) % self.options.train.watch_every_steps == 0
        with clock.counting("step"):
            outcome = self._take_step(batches, watch=watch, stop=stop)
        names = [name for batch in batches for name in batch["name"]]
        self.samples += len(names) * self.world.size
        self.taken.append(Taken(self.step, outcome, names))
        self._learn(clock, leave=self.steps_behind)
        if watch or self._due(self.options.train.log_every_steps):
            self._learn(clock)
            self._log_terms(outcome.terms, clock)
        if watch and self.train_step.discriminator is not None:
            self._log_spectral_norms()

    def _take_step(self, batches: list[dict], *, watch: bool, stop: bool = False) -> Outcome:
        try:
            return self.train_step(*self._pairs_of(batches), watch=watch, stop=stop)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise UserError(
            f"{self.device} ran out of memory in step {self.step + 1:,}: lower dataloader.batch_size (and raise "
            "train.accumulate_batches in its place), or set train.precision: bf16"
        )

    def _pairs_of(self, batches: list[dict]) -> Iterator[Batch]:
        """The training pairs of a step, one batch at a time, each from a seed of its own."""
        for number, batch in enumerate(batches, start=1):
            seed = batch_seed(self.options.seed, rank=self.world.rank, step=self.step, number=number)
            yield self.pairs(batch, seed=seed, device=self.device)

    def _learn(self, clock: "_Clock", *, leave: int = 0) -> None:
        """Learn how the steps went that were taken, but for so many of the last ones, which may still be under way."""
        while len(self.taken) > leave:
            taken = self.taken.popleft()
            with clock.counting("step"):  # waits for a GPU
                broken = taken.outcome.broken
            self.stopping |= taken.outcome.stop_requested
            if broken:
                self._tell_of_skip(taken)
            else:
                self.bad_steps = 0

    def _tell_of_skip(self, taken: Taken) -> None:
        """Say what was not finite and on which files; end the run where that has become the rule."""
        self.bad_steps += 1
        limit, broken = self.options.train.max_bad_steps, ", ".join(taken.outcome.broken)
        # Gradients are averaged over the processes: a broken one shows on all of them, a broken loss where it arose.
        shares = self.world.gather((taken.outcome.broken_here, taken.names))
        culprits = [share for share in shares if share[0]] or shares
        files = ", ".join(name for _, share in culprits for name in share)
        files += " or earlier ones, from the pool of pairs" * self.pairs.mixes_batches
        self.log.warning(
            f"step {taken.number:,} was skipped: {broken} not finite, with the images {files} "
            f"({self.bad_steps} in a row; the run ends at {limit})"
        )
        if self.bad_steps >= limit:
            self._settle()
            with self.world.raise_together():
                raise UserError(
                    f"{limit} steps in a row were skipped (not finite: {broken}): the weights "
                    f"have probably diverged. The last good state is {self._newest()}; go on from there with a lower "
                    "optimizer.learning_rate or with optimizer.clip_grad_norm, or look at the images named above"
                )

    def _newest(self) -> str:
        newest = next(iter(checkpoint.states(self.folder.states)), None)
        return newest.name if newest else "none: nothing was saved before"

    def _log_terms(self, terms: dict[str, float], clock: "_Clock") -> None:
        steps_per_s, spent_s = clock.lap(self.step)
        spent_s = self.world.mean(spent_s)
        total = self.options.train.total_steps
        pairs_per_step = self.options.dataloader.batch_size * self.options.train.accumulate_batches * self.world.size
        rates = {
            "learning_rate": self.train_step.learning_rate(),
            "images_per_s": steps_per_s * pairs_per_step,
        }
        eta = timedelta(seconds=round((total - self.step) / steps_per_s))
        self.log.info(
            f"step {self.step:,}/{total:,}  {_in_words(terms)}"
            f"  | lr {rates['learning_rate']:.3g}  {steps_per_s:.3g} steps/s  {rates['images_per_s']:.3g} images/s"
            f"  {_shares_in_words(spent_s)}  ETA {eta}"
        )
        self.log.scalars("train", self.step, {**terms, **rates})
        self.log.scalars("time", self.step, {f"{part}_s": seconds for part, seconds in spent_s.items()})
        for warning in self.watch.update(self.step, terms):
            self.log.warning(warning)

    def _log_spectral_norms(self) -> None:
        norms = {name: norm.item() for name, norm in spectral_norms(self.train_step.discriminator).items()}
        largest = max(norms, key=norms.get)
        self.log.info(f"step {self.step:,}  spectral norms of D: largest {norms[largest]:.3g} ({largest})")
        self.log.scalars("spectral_norm", self.step, norms)

    def _validate(self, wish: Callable[[], str | None]) -> None:
        """Score every benchmark, unless the run is asked to stop before the end of it.

        In float32, as `test.py` does by default: the precision of training is that of its steps alone.
        """
        upscaler = Upscaler(self.train_step.deployed_generator, self.device)
        means = {}
        for benchmark in self.benchmarks:
            folder = self.folder.images / f"step_{self.step:09d}" / benchmark.name
            scores = evaluate(
                upscaler,
                benchmark,
                metrics=self.metrics,
                device=self.device,
                world=self.world,
                output=folder,
                on_image=partial(self._show_image, benchmark),
                stop=lambda: wish() is not None,
            )
            if scores is None:
                break
            self._report(benchmark, scores)
            means[benchmark.name] = scores.complete_mean
        else:
            if self.benchmarks and self.world.main:
                try:
                    self._show_discriminator(self.benchmarks[0].images[0])
                except UserError as error:  # a file that cannot be read any more, of which the scores tell as well
                    self.log.warning(f"step {self.step:,}  what the discriminator sees is not shown: {error}")
            self.validated, self.scores = self.step, means
        self.train_step.generator.train()

    def _show_image(self, benchmark: Benchmark, image: BenchmarkImage, sr: np.ndarray) -> None:
        share = benchmark.images[:: self.world.size]  # of the main process, which alone has a log to show them in
        if self.world.main and image in share[:PREVIEW_IMAGES]:
            self.log.image(f"{benchmark.name}/{image.name}", self.step, sr)

    def _report(self, benchmark: Benchmark, scores: BenchmarkScores) -> None:
        for problem in (*scores.notes, *scores.failures):
            self.log.warning(f"step {self.step:,}  {benchmark.name}: {problem}")
        incomplete = {name: count for name, count in scores.counts.items() if count < scores.total}
        words = {name: f" ({count} of {scores.total} images)" for name, count in incomplete.items()}
        figures = "  ".join(f"{name} {value:.4f}{words.get(name, '')}" for name, value in scores.mean.items())
        wanted, metric = self._wanted_best()
        if benchmark.name == wanted:
            score = scores.complete_mean.get(metric)
            sign = -1 if self.metrics[metric].lower_is_better else 1
            if score is None:
                self.log.warning(
                    f"step {self.step:,}  {wanted}: {scores.counts.get(metric, 0)} of {scores.total} images have a "
                    f"{metric} score, so these weights are not compared with the best ones (validation.best_by)"
                )
            elif self.best is None or sign * score > sign * self.best["score"]:
                self.best = {"score": score, "metric": metric, "benchmark": wanted, "step": self.step}
                figures += f"  (the best {metric} so far)"
        if scores.mean:
            self.log.info(f"step {self.step:,}  {benchmark.name}: {figures}")
            counts = {f"{name}_images": count for name, count in incomplete.items()}
            self.log.scalars(f"validation/{benchmark.name}", self.step, {**scores.mean, **counts})

    def _wanted_best(self) -> tuple[str | None, str | None]:
        """Name of the benchmark and of the score by which the best weights are found."""
        metric = self.options.validation.best_by
        return (self.benchmarks[0].name, metric) if metric is not None else (None, None)

    def _best_is_new(self) -> bool:
        return self.best is not None and self.best["step"] == self.step

    @torch.no_grad()
    def _show_discriminator(self, image: BenchmarkImage) -> None:
        """What the discriminator sees in an image, and what it makes of SR of it."""
        if self.train_step.discriminator is None or image.hr is None:
            return
        scale, (lr, hr) = self.train_step.generator.scale, (read_rgb(path) for path in (image.lr, image.hr))
        hr = hr[:SHOWN_PX, :SHOWN_PX]
        lr = lr[: hr.shape[0] // scale, : hr.shape[1] // scale]
        sr = self.train_step.deployed_generator(to_float(to_tensor(lr)[None].to(self.device)))[0]
        hr = hr[: sr.shape[1], : sr.shape[2]]
        if min(hr.shape[:2]) < MIN_PX:
            return
        discriminator, extractor = self.train_step.discriminator, self.train_step.extractor
        with self.train_step.autocast():  # the extractor's weights are kept in the type of the forward passes
            seen = views(discriminator, extractor, hr=hr, sr={"SR": to_array(to_uint8(sr))})
        pictures = {
            "semantics": seen.semantics,
            "attention": seen.attention,
            "real_or_fake_HR": seen.real_hr,
            "real_or_fake_SR": seen.real_sr["SR"],
        }
        for name, picture in pictures.items():
            if picture is not None:
                self.log.image(f"discriminator/{name}", self.step, picture)

    def _save(self) -> None:
        """Begin a save, which goes on beside the steps that follow. One that is still under way is waited for."""
        self._settle()
        if self.world.main:
            self.saving.start(self._write_files(checkpoint.snapshot(self._state())))
        self.saved = (self.step, self.validated)

    def _settle(self) -> None:
        """Wait until the save under way is on the disk. A UserError where it failed, on every rank alike."""
        with self.world.raise_together():
            self.saving.settle()

    def _state(self) -> dict[str, Any]:
        """All that a save consists of; the tensors are those that training goes on to change."""
        ema = self.train_step.ema
        return {
            "params": self.train_step.generator.state_dict(),
            "params_ema": ema.state_dict() if ema is not None else None,
            "options": self.options.model_dump(mode="json"),
            "step": self.step,
            "scale": self.train_step.generator.scale,
            "scores": self.scores,
            "scored_step": self.validated,
            "train_step": self.train_step.state_dict(),
            "loop": self.state_dict(),
        }

    def _write_files(self, state: dict[str, Any]) -> Iterator[None]:
        """Write a snapshot, file by file. By now the loop may stand elsewhere: all that is written is in `state`."""
        started_s = time.perf_counter()
        self.log.flush()  # so that the figures never lag behind the state that a run goes on from
        step, best = state["step"], state["loop"]["best"]
        path = checkpoint.state_path(self.folder.states, step)
        checkpoint.save_state(path, state)
        yield
        weights = {key: value for key, value in state.items() if key not in ("train_step", "loop")}
        checkpoint.save_generator(self.folder.latest_weights, **weights)
        yield
        if best is not None and best["step"] == step:
            link_file(self.folder.latest_weights, self.folder.best_weights)
        link_file(self.folder.latest_weights, self.folder.weights(step))  # last: where these are, all are
        for older in checkpoint.states(self.folder.states)[1:]:  # also of a save that a kill has cut short
            every = self.options.train.keep_weights
            checkpoint.drop_weights(self.folder.root, checkpoint.step_of(older), kept_every_steps=every)
        checkpoint.keep_states(
            self.folder.states,
            self.options.train.keep_states,
            beside=checkpoint.state_path(self.folder.states, best["step"]) if best is not None else None,
        )
        size_mb, took_s = path.stat().st_size / 1e6, time.perf_counter() - started_s
        self.log.info(
            f"step {step:,}  saved {self.folder.latest_weights} and {path.name} ({size_mb:.3g} MB, {took_s:.2g} s)"
        )


class _Clock:
    """What the main thread spends its time on, and steps per second, for which validation and saving do not count.

    Nothing here waits for a GPU, which works on while the main thread waits for data or copies a state: the time of a
    step is that until its gradients are there (see TrainStep), and ends with the last step's update at each lap. What
    is counted as waiting for data, or as saving, is therefore rather too much than too little.
    """

    def __init__(self, step: int) -> None:
        self._begin(step)

    def _begin(self, step: int) -> None:
        self._start_s, self._start_step = time.perf_counter(), step
        self._spent_s = dict.fromkeys(("data_wait", "step", "validation", "save"), 0.0)

    @contextmanager
    def counting(self, part: str) -> Iterator[None]:
        """Time in this block is spent on `part`."""
        entered_s = time.perf_counter()
        yield
        self._spent_s[part] += time.perf_counter() - entered_s

    def waiting_for(self, batches: Iterable[dict]) -> Iterator[dict]:
        """`batches`, the time until each of them arrives counted as waiting."""
        iterator = iter(batches)
        while True:
            with self.counting("data_wait"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def lap(self, step: int) -> tuple[float, dict[str, float]]:
        """Steps per second, and the seconds spent on each part and on everything else, since the last lap."""
        elapsed_s = time.perf_counter() - self._start_s
        spent_s = {**self._spent_s, "other": elapsed_s - sum(self._spent_s.values())}
        rate = (step - self._start_step) / (elapsed_s - spent_s["validation"] - spent_s["save"])
        self._begin(step)
        return rate, spent_s


def _shares_in_words(spent_s: dict[str, float]) -> str:
    """Shares of the time since the last line; only those of data and step are told when they are nothing."""
    total_s = sum(spent_s.values())
    shares = {part.removesuffix("_wait"): seconds / total_s for part, seconds in spent_s.items()}
    told = {part: share for part, share in shares.items() if part in ("data", "step") or share >= MIN_SHARE}
    return " ".join(f"{part} {share:.1%}" for part, share in told.items())


def _in_words(terms: dict[str, float]) -> str:
    """The figures of a step for people: losses, D's opinions, gradients, shares of the losses in G's, colours."""
    parts = [f"{name} {terms[name]:.4g}" for name in ("pixel", "perceptual", "gan", "d_loss") if name in terms]
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
