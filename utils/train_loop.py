"""The loop around the training step: batches in; log lines, scores, pictures, weights and states out."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import numpy as np
import torch

from data.benchmarks import Benchmark, BenchmarkImage
from data.images import read_rgb, to_float, to_tensor
from models.train_step import TrainStep
from options.schema import Options
from utils import checkpoint
from utils.distributed import World
from utils.evaluate import BenchmarkScores, Metric, by_network, evaluate
from utils.run_folder import RunFolder
from utils.run_log import SilentLog

PREVIEW_IMAGES = 4  # of each benchmark, in TensorBoard
SHOWN_PX = 512  # side of the part of an image on which D's opinion is shown


class TrainLoop:
    """A run of the training step from where it stands to its last step.

    Args:
        batches: yields {'lr', 'hr', 'name'} with uint8 images, one for every step that is left.
        samples: training pairs that all processes together have seen so far; the position in the data.
    """

    def __init__(
        self,
        *,
        options: Options,
        train_step: TrainStep,
        batches: Iterable[dict],
        benchmarks: list[Benchmark],
        metrics: dict[str, Metric],
        folder: RunFolder,
        log: SilentLog,
        world: World,
        device: torch.device,
        samples: int = 0,
    ) -> None:
        self.options, self.train_step, self.batches = options, train_step, batches
        self.benchmarks, self.metrics = benchmarks, metrics
        self.folder, self.log, self.world, self.device = folder, log, world, device
        self.samples = samples

    def run(self) -> None:
        """Train to the last step; validate, save and log on the way."""
        train, total = self.options.train, self.options.train.total_steps
        clock = _Clock(self.step)
        with self.log.progress(self.step, total) as advance:
            for batch in clock.waiting_for(self.batches):
                # Nothing random in a step depends on what came before it, so that a run can go on anywhere.
                torch.manual_seed(_seed(self.options.seed, self.world.rank, self.step))
                terms = self.train_step(*(self._on_device(batch[key]) for key in ("lr", "hr")))
                self.samples += len(batch["name"]) * self.world.size
                advance(self.step)
                last = self.step == total
                if self.step % train.log_every_steps == 0 or last:
                    self._log_terms(self.world.mean(terms), clock)
                if self.step % self.options.validation.every_steps == 0 or last:
                    with clock.pause():
                        self._validate()
                if self.step % train.save_every_steps == 0 or last:
                    with clock.pause():
                        self._save()

    @property
    def step(self) -> int:
        """Optimisation steps done."""
        return self.train_step.step

    def _on_device(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self.device, non_blocking=True)
        return to_float(images).contiguous(memory_format=torch.channels_last)

    def _log_terms(self, terms: dict[str, float], clock: "_Clock") -> None:
        steps_per_s, waiting = clock.lap(self.step)
        total = self.options.train.total_steps
        images_per_s = steps_per_s * self.options.dataloader.batch_size * self.world.size
        eta = timedelta(seconds=round((total - self.step) / steps_per_s))
        self.log.info(
            f"step {self.step:,}/{total:,}  "
            + "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
            + f"  | lr {self.train_step.learning_rate():.3g}  {steps_per_s:.3g} steps/s  {images_per_s:.3g} images/s"
            + f"  data {waiting:.1%}  ETA {eta}"
        )
        rates = {"learning_rate": self.train_step.learning_rate(), "images_per_s": images_per_s, "data_wait": waiting}
        self.log.scalars("train", self.step, {**terms, **rates})

    def _validate(self) -> None:
        generator = self.train_step.deployed_generator
        for benchmark in self.benchmarks:
            folder = self.folder.images / f"step_{self.step:09d}" / benchmark.name
            scores = evaluate(
                by_network(generator, self.device),
                benchmark,
                metrics=self.metrics,
                device=self.device,
                world=self.world,
                output=folder,
                on_image=partial(self._show_image, benchmark),
            )
            self._report(benchmark, scores)
        if self.benchmarks and self.world.main:
            self._show_discriminator(self.benchmarks[0].images[0])
        self.train_step.generator.train()

    def _show_image(self, benchmark: Benchmark, image: BenchmarkImage, sr: np.ndarray) -> None:
        share = benchmark.images[:: self.world.size]  # of the main process, which alone has a log to show them in
        if self.world.main and image in share[:PREVIEW_IMAGES]:
            self.log.image(f"{benchmark.name}/{image.name}", self.step, sr)

    def _report(self, benchmark: Benchmark, scores: BenchmarkScores) -> None:
        if not scores.mean:
            return
        figures = "  ".join(f"{name} {value:.4f}" for name, value in scores.mean.items())
        self.log.info(f"step {self.step:,}  {benchmark.name}: {figures}")
        self.log.scalars(f"validation/{benchmark.name}", self.step, scores.mean)

    @torch.no_grad()
    def _show_discriminator(self, image: BenchmarkImage) -> None:
        """What the discriminator makes of an SR image: white where it takes it for real."""
        discriminator = self.train_step.discriminator
        if discriminator is None or image.hr is None:
            return
        lr, hr = (to_float(to_tensor(read_rgb(path))[None].to(self.device)) for path in (image.lr, image.hr))
        multiple = 16  # D takes sides that are multiples of this
        height, width = (min(px, SHOWN_PX) // multiple * multiple for px in hr.shape[2:])
        hr = hr[..., :height, :width]
        sr = self.train_step.deployed_generator(lr)[..., :height, :width]
        semantic = self.train_step.extractor(hr) if self.train_step.extractor is not None else None
        discriminator.eval()  # a look must not move the power iteration of the spectral norm
        logits = discriminator(sr, semantic)
        discriminator.train()
        grey = (logits.float().sigmoid()[0, 0] * 255).round().byte().cpu().numpy()
        self.log.image("discriminator/real_or_fake", self.step, np.repeat(grey[:, :, None], 3, axis=2))

    def _save(self) -> None:
        with self.world.agree():
            if self.world.main:
                self._write_files()

    def _write_files(self) -> None:
        weights = {"params": self.train_step.generator.state_dict(), "params_ema": None}
        if self.train_step.ema is not None:
            weights["params_ema"] = self.train_step.ema.module.state_dict()
        about = {"options": self.options.model_dump(mode="json"), "step": self.step}
        for path in (self.folder.weights(self.step), self.folder.latest_weights):
            checkpoint.save_generator(path, **weights, **about)
        state = {"samples": self.samples, "train_step": self.train_step.state_dict()}
        checkpoint.save_state(checkpoint.state_path(self.folder.states, self.step), {**weights, **about, **state})
        checkpoint.keep_newest(self.folder.states, self.options.train.keep_states)
        self.log.info(f"step {self.step:,}  saved {self.folder.latest_weights}")


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
