"""The loop around the training step: batches in; log lines, scores, pictures, weights and states out."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch

from data.benchmarks import Benchmark, BenchmarkImage
from data.images import read_rgb, to_array, to_float, to_tensor, to_uint8
from models.diagnostics import spectral_norms
from models.train_step import Batch, Outcome, TrainStep
from options.schema import Options
from utils import checkpoint
from utils.distributed import World
from utils.errors import UserError
from utils.evaluate import BenchmarkScores, evaluate
from utils.gan_watch import GanWatch
from utils.memory import is_out_of_memory, peak_bytes, total_bytes
from utils.metrics import Metric
from utils.run_folder import RunFolder
from utils.run_log import SilentLog
from utils.semantic_pictures import LEAST_PX, views
from utils.signals import wish_to_stop
from utils.training_pairs import DegradedPairs, GivenPairs
from utils.upscaler import Upscaler

PREVIEW_IMAGES = 4  # of each benchmark, in TensorBoard
SHOWN_PX = 512  # side of the part of an image in which it is shown what D sees


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
        self.watch = GanWatch()

    def state_dict(self) -> dict[str, Any]:
        """Where the loop stands, beside its training step: on every process alike, so all of them have to ask."""
        return {
            "samples": self.samples,
            "validated": self.validated,
            "scores": self.scores,
            "best": self.best,
            "watch": self.watch.state_dict(),
            "processes": self.world.size,
            "pairs": self.world.gather(self.pairs.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`. The best score counts if the options still ask for the same."""
        self.samples, self.validated = state["samples"], state["validated"]
        self.scores = state.get("scores", {})  # states did not always have them
        self.watch.load_state_dict(state["watch"])
        if state["processes"] == self.world.size and "pairs" in state:
            self.pairs.load_state_dict(state["pairs"][self.world.rank])
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
            self.log.progress(self.step, total) as advance,
            closing(clock.waiting_for(self.batches)) as batches,
        ):
            if self.world.any(self.world.main and self.step > 0 and not self.folder.weights(self.step).exists()):
                self._save()  # the run was killed between the state and its weights, or branches off from another one
            stopping = late = False  # asked to stop; behind with a save
            while True:
                if self._due(self.options.validation.every_steps) and self.validated != self.step and not stopping:
                    with clock.pause():
                        self._validate(wish)
                        stopping = self.world.any(wish() is not None)
                late = late or stopping or self._due(train.save_every_steps) or self._best_is_new()
                if late and (self.bad_steps == 0 or self.step >= total) and self.saved != (self.step, self.validated):
                    with clock.pause():
                        self._save()
                    late = False
                if stopping or self.step >= total:
                    break
                self._advance([next(batches) for _ in range(train.accumulate_batches)], clock)
                advance(self.step)
                stopping = self.world.any(wish() is not None)
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

    def _advance(self, batches: list[dict], clock: "_Clock") -> None:
        """One step, and what there is to tell of it."""
        # Nothing random in a step depends on what came before it, so that a run can go on anywhere.
        torch.manual_seed(_seed(self.options.seed, self.world.rank, self.step))
        watch = (self.step + 1) % self.options.train.watch_every_steps == 0
        outcome = self._take_step(batches, watch=watch)
        self.samples += sum(len(batch["name"]) for batch in batches) * self.world.size
        if outcome.broken:
            self._tell_of_skip(outcome, [name for batch in batches for name in batch["name"]])
        else:
            self.bad_steps = 0
        if watch or self._due(self.options.train.log_every_steps):
            self._log_terms(self.world.mean(outcome.terms), clock)
        if watch and self.train_step.discriminator is not None:
            self._log_spectral_norms()

    def _take_step(self, batches: list[dict], *, watch: bool) -> Outcome:
        try:
            return self.train_step(*self._pairs_of(batches), watch=watch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise UserError(
            f"{self.device} ran out of memory in step {self.step + 1:,}: lower dataloader.batch_size (and raise "
            "train.accumulate_batches in its place), or set train.precision: bf16"
        )

    def _pairs_of(self, batches: list[dict]) -> Iterator[Batch]:
        """The training pairs of a step, one batch at a time, each from a seed of its own."""
        for number, batch in enumerate(batches, start=1):  # numpy takes a zero at the end of a seed for nothing
            seed = _seed(self.options.seed, self.world.rank, self.step, number)
            yield self.pairs(batch, seed=seed, device=self.device)

    def _tell_of_skip(self, outcome: Outcome, names: list[str]) -> None:
        """Say what was not finite and on which files; end the run where that has become the rule."""
        self.bad_steps += 1
        limit = self.options.train.max_bad_steps
        here = [name for name in outcome.broken if not outcome.terms[name].isfinite()]
        # Gradients are averaged over the processes: a broken one shows on all of them, a broken loss where it arose.
        losses = [name for name in here if not name.endswith("_gradient")]
        shares = self.world.gather((losses, names))
        culprits = [share for share in shares if share[0]] or shares
        files = ", ".join(name for _, share in culprits for name in share)
        files += " or earlier ones, from the pool of pairs" * self.pairs.mixes_batches
        self.log.warning(
            f"step {self.step:,} was skipped: {', '.join(outcome.broken)} not finite, with the images {files} "
            f"({self.bad_steps} in a row; the run ends at {limit})"
        )
        if self.bad_steps >= limit:
            with self.world.agree():
                raise UserError(
                    f"{limit} steps in a row were skipped (not finite: {', '.join(outcome.broken)}): the weights "
                    f"have probably diverged. The last good state is {self._newest()}; go on from there with a lower "
                    "optimizer.learning_rate or with optimizer.clip_grad_norm, or look at the images named above"
                )

    def _newest(self) -> str:
        newest = next(iter(checkpoint.states(self.folder.states)), None)
        return newest.name if newest else "none: nothing was saved before"

    def _log_terms(self, terms: dict[str, float], clock: "_Clock") -> None:
        steps_per_s, waiting = clock.lap(self.step)
        total = self.options.train.total_steps
        pairs_per_step = self.options.dataloader.batch_size * self.options.train.accumulate_batches * self.world.size
        rates = {
            "learning_rate": self.train_step.learning_rate(),
            "images_per_s": steps_per_s * pairs_per_step,
            "data_wait": waiting,
        }
        eta = timedelta(seconds=round((total - self.step) / steps_per_s))
        self.log.info(
            f"step {self.step:,}/{total:,}  {_in_words(terms)}"
            f"  | lr {rates['learning_rate']:.3g}  {steps_per_s:.3g} steps/s  {rates['images_per_s']:.3g} images/s"
            f"  data {waiting:.1%}  ETA {eta}"
        )
        self.log.scalars("train", self.step, {**terms, **rates})
        for warning in self.watch.look(self.step, terms):
            self.log.warning(warning)

    def _log_spectral_norms(self) -> None:
        norms = {name: norm.item() for name, norm in spectral_norms(self.train_step.discriminator).items()}
        largest = max(norms, key=norms.get)
        self.log.info(f"step {self.step:,}  spectral norms of D: largest {norms[largest]:.3g} ({largest})")
        self.log.scalars("spectral_norm", self.step, norms)

    def _validate(self, wish: Callable[[], str | None]) -> None:
        """Score every benchmark, unless the run is asked to stop before the end of it."""
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
            means[benchmark.name] = scores.mean
        else:
            if self.benchmarks and self.world.main:
                self._show_discriminator(self.benchmarks[0].images[0])
            self.validated, self.scores = self.step, means
        self.train_step.generator.train()

    def _show_image(self, benchmark: Benchmark, image: BenchmarkImage, sr: np.ndarray) -> None:
        share = benchmark.images[:: self.world.size]  # of the main process, which alone has a log to show them in
        if self.world.main and image in share[:PREVIEW_IMAGES]:
            self.log.image(f"{benchmark.name}/{image.name}", self.step, sr)

    def _report(self, benchmark: Benchmark, scores: BenchmarkScores) -> None:
        for problem in (*scores.notes, *scores.failures):
            self.log.warning(f"step {self.step:,}  {benchmark.name}: {problem}")
        if not scores.mean:
            return
        figures = "  ".join(f"{name} {value:.4f}" for name, value in scores.mean.items())
        wanted, metric = self._wanted_best()
        if benchmark.name == wanted:
            sign = -1 if self.metrics[metric].lower_is_better else 1
            score = scores.mean[metric]
            if self.best is None or sign * score > sign * self.best["score"]:
                self.best = {"score": score, "metric": metric, "benchmark": wanted, "step": self.step}
                figures += f"  (the best {metric} so far)"
        self.log.info(f"step {self.step:,}  {benchmark.name}: {figures}")
        self.log.scalars(f"validation/{benchmark.name}", self.step, scores.mean)

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
        if min(hr.shape[:2]) < LEAST_PX:
            return
        discriminator, extractor = self.train_step.discriminator, self.train_step.extractor
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
        loop = self.state_dict()
        with self.world.agree():
            if self.world.main:
                self._write_files(loop)
        self.saved = (self.step, self.validated)

    def _write_files(self, loop: dict[str, Any]) -> None:
        started_s = time.perf_counter()
        self.log.flush()  # so that the figures never lag behind the state that a run goes on from
        weights = {"params": self.train_step.generator.state_dict(), "params_ema": None}
        if self.train_step.ema is not None:
            weights["params_ema"] = self.train_step.ema.module.state_dict()
        about = {
            "options": self.options.model_dump(mode="json"),
            "step": self.step,
            "scale": self.train_step.generator.scale,
            "scores": self.scores,
            "scored_step": self.validated,
        }
        path = checkpoint.state_path(self.folder.states, self.step)
        state = {"train_step": self.train_step.state_dict(), "loop": loop}
        checkpoint.save_state(path, {**weights, **about, **state})
        best = [self.folder.best_weights] if self._best_is_new() else []
        # Those of this step last: where they are, all are.
        for weights_path in (*best, self.folder.latest_weights, self.folder.weights(self.step)):
            checkpoint.save_generator(weights_path, **weights, **about)
        checkpoint.keep_states(
            self.folder.states,
            self.options.train.keep_states,
            beside=checkpoint.state_path(self.folder.states, self.best["step"]) if self.best else None,
        )
        size_mb, took_s = path.stat().st_size / 1e6, time.perf_counter() - started_s
        self.log.info(
            f"step {self.step:,}  saved {self.folder.latest_weights} and {path.name} ({size_mb:.3g} MB, {took_s:.2g} s)"
        )


class _Clock:
    """Steps per second, and the share of time spent waiting for data; validation and saving do not count."""

    def __init__(self, step: int) -> None:
        self._start_s, self._start_step, self._waited_s = time.perf_counter(), step, 0.0

    def waiting_for(self, batches: Iterable[dict]) -> Iterator[dict]:
        """`batches`, the time until each of them arrives counted as waiting."""
        iterator = iter(batches)
        while True:
            asked_s = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited_s += time.perf_counter() - asked_s
            yield batch

    def lap(self, step: int) -> tuple[float, float]:
        """Steps per second and share of waiting since the last lap."""
        elapsed_s = time.perf_counter() - self._start_s
        rate, waiting = (step - self._start_step) / elapsed_s, self._waited_s / elapsed_s
        self._start_s, self._start_step, self._waited_s = time.perf_counter(), step, 0.0
        return rate, waiting

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time in this block does not count."""
        paused_s = time.perf_counter()
        yield
        self._start_s += time.perf_counter() - paused_s


def _seed(*numbers: int) -> int:
    """One 64-bit seed from several numbers, unrelated for neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


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
