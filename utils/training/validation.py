"""Validation during training: scores of the benchmarks, the best score so far, pictures for TensorBoard."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from sed_sr.data.benchmarks import Benchmark, BenchmarkImage
from sed_sr.data.images import read_rgb
from sed_sr.data.tensors import to_array, to_float, to_tensor, to_uint8
from sed_sr.models.train_step import TrainStep
from sed_sr.models.vgg_discriminator import VGGDiscriminator
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.evaluate import BenchmarkScores, evaluate
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.upscaler import Upscaler
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.training.run_log import SilentLog
from sed_sr.utils.visualization.discriminator_views import MIN_PX
from sed_sr.utils.visualization.pictures import discriminator_pictures

PREVIEW_IMAGES = 4  # of each benchmark, in TensorBoard
PREVIEW_PX = 512  # side of the crop for which the discriminator's views are shown


class Validator:
    """Scores every benchmark with the generator that would be saved now.

    Args:
        best_by: the metric, on the first benchmark, that decides which weights are the best; None: they are not kept.

    Attributes:
        step: the last step that was validated; 0: none.
        scores: of that step: benchmark -> metric -> mean over all images.
        best: the best score with its metric, benchmark and step; None: there is none yet.
    """

    def __init__(
        self,
        train_step: TrainStep,
        *,
        benchmarks: list[Benchmark],
        metrics: dict[str, Metric],
        best_by: str | None,
        folder: RunFolder,
        log: SilentLog,
        world: World,
        device: torch.device,
    ) -> None:
        self.train_step, self.benchmarks, self.metrics = train_step, benchmarks, metrics
        self.best_by = (benchmarks[0].name, best_by) if best_by is not None else None  # benchmark, metric
        self.folder, self.log, self.world, self.device = folder, log, world, device
        self.step = 0
        self.scores: dict[str, dict[str, float]] = {}
        self.best: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"validated": self.step, "scores": self.scores, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a `state_dict()`. The best score is dropped if `best_by` is another one now."""
        self.step = state["validated"]
        self.scores = state.get("scores", {})  # missing in states of early versions
        best = state["best"]
        if best is not None and (best["benchmark"], best["metric"]) == self.best_by:
            self.best = best

    @property
    def best_is_new(self) -> bool:
        """Whether the current step has the best score."""
        return self.best is not None and self.best["step"] == self.train_step.step

    def validate(self, *, stop_requested: Callable[[], bool]) -> None:
        """Score all benchmarks, in float32 as `test.py` does by default, whatever the precision of training.

        Args:
            stop_requested: called between images; where it returns True, the validation is abandoned and counts as
                not done.
        """
        step = self.train_step.step
        upscaler = Upscaler(self.train_step.deployed_generator, self.device)
        means = {}
        # Compiled code is for the patch size of training. Images of other sizes would compile it again.
        with torch.compiler.set_stance("force_eager"):
            for benchmark in self.benchmarks:
                scores = evaluate(
                    upscaler,
                    benchmark,
                    scale=self.train_step.generator.scale,
                    metrics=self.metrics,
                    device=self.device,
                    world=self.world,
                    output=self.folder.images / f"step_{step:09d}" / benchmark.name,
                    on_image=partial(self._log_preview, benchmark),
                    stop=stop_requested,
                )
                if scores is None:
                    break
                self._log_scores(benchmark, scores)
                means[benchmark.name] = scores.complete_mean
            else:
                self._log_discriminator_views()
                self.step, self.scores = step, means
        self.train_step.generator.train()

    def _log_preview(self, benchmark: Benchmark, image: BenchmarkImage, sr: np.ndarray) -> None:
        images_of_main = benchmark.images[:: self.world.size]  # only the main process has a log
        if self.world.main and image in images_of_main[:PREVIEW_IMAGES]:
            self.log.image(f"{benchmark.name}/{image.name}", self.train_step.step, sr)

    def _log_scores(self, benchmark: Benchmark, scores: BenchmarkScores) -> None:
        step = self.train_step.step
        for problem in (*scores.notes, *scores.failures):
            self.log.warning(f"step {step:,}  {benchmark.name}: {problem}")
        incomplete = {name: count for name, count in scores.counts.items() if count < scores.total}
        suffixes = {name: f" ({count} of {scores.total} images)" for name, count in incomplete.items()}
        text = "  ".join(f"{name} {value:.4f}{suffixes.get(name, '')}" for name, value in scores.mean.items())
        if self._update_best(benchmark, scores) and self.best is not None:
            text += f"  (the best {self.best['metric']} so far)"
        if scores.mean:
            self.log.info(f"step {step:,}  {benchmark.name}: {text}")
            counts = {f"{name}_images": count for name, count in incomplete.items()}
            self.log.scalars(f"validation/{benchmark.name}", step, {**scores.mean, **counts})

    def _update_best(self, benchmark: Benchmark, scores: BenchmarkScores) -> bool:
        """Remember the score of `best_by` if it is the best so far. Returns whether it is."""
        if self.best_by is None or benchmark.name != self.best_by[0]:
            return False
        _, metric = self.best_by
        score = scores.complete_mean.get(metric)
        if score is None:
            self.log.warning(
                f"step {self.train_step.step:,}  {benchmark.name}: {scores.counts.get(metric, 0)} of {scores.total} "
                f"images have a {metric} score, so these weights are not compared with the best ones "
                "(validation.best_by)"
            )
            return False
        sign = -1 if self.metrics[metric].lower_is_better else 1
        if self.best is not None and sign * score <= sign * self.best["score"]:
            return False
        self.best = {"score": score, "metric": metric, "benchmark": benchmark.name, "step": self.train_step.step}
        return True

    @torch.no_grad()
    def _log_discriminator_views(self) -> None:
        """Log what the discriminator sees in the first benchmark image and in its SR, and its logits."""
        discriminator, extractor = self.train_step.discriminator, self.train_step.extractor
        if not self.world.main or not self.benchmarks or discriminator is None:
            return
        if isinstance(discriminator, VGGDiscriminator):  # one logit for a whole image
            return
        image = self.benchmarks[0].images[0]
        if image.hr is None:
            return
        try:
            lr, hr = read_rgb(image.lr), read_rgb(image.hr)
        except UserError as error:  # the file has become unreadable; the scores report it as well
            self.log.warning(f"step {self.train_step.step:,}  the discriminator's views are not shown: {error}")
            return
        scale = self.train_step.generator.scale
        hr = hr[:PREVIEW_PX, :PREVIEW_PX]
        lr = lr[: hr.shape[0] // scale, : hr.shape[1] // scale]
        sr = self.train_step.deployed_generator(to_float(to_tensor(lr)[None].to(self.device)))[0]
        hr = hr[: sr.shape[1], : sr.shape[2]]
        if min(hr.shape[:2]) < MIN_PX:
            return
        with self.train_step.autocast():  # the extractor's weights have the type of autocast
            seen = discriminator_pictures(discriminator, extractor, hr=hr, sr={"SR": to_array(to_uint8(sr))})
        pictures = {
            "semantics": seen.semantics,
            "attention": seen.attention,
            "real_or_fake_HR": seen.real_hr,
            "real_or_fake_SR": seen.real_sr["SR"],
        }
        for name, picture in pictures.items():
            if picture is not None:
                self.log.image(f"discriminator/{name}", self.train_step.step, picture)
