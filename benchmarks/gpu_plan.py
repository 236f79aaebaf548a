"""What `benchmarks/gpu.py` measures: recipes, batches, ways to compute a step; all of it, or something tiny."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
RECIPES = ("train_rrdb_P+SeD", "train_rrdb_U+SeD", "train_swinir_P+SeD", "train_swinir_U+SeD")
RELEASED, DEFAULT, EAGER, GRAPHS = "released-style", "default", "bf16", "bf16, graphs"
COMPILED = "bf16, graphs, compiled"
VARIANTS = {  # -> options
    RELEASED: {},
    DEFAULT: {},
    EAGER: {"train__precision": "bf16", "train__cuda_graph": False},
    GRAPHS: {"train__precision": "bf16", "train__cuda_graph": True},
    COMPILED: {"train__precision": "bf16", "train__cuda_graph": True, "train__compile": True},
}
BF16 = (EAGER, GRAPHS, COMPILED)  # they are profiled
UPSCALERS = ("rrdb", "swinir")
TINY = {
    "generator": {"blocks": 1, "features": 8, "growth": 4},
    "discriminator": {"features": 8},
    "dataset": {"hr_patch_px": 64},
}
Row = dict[str, Any]  # what was measured, under its names; or an `error`


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    recipes: dict[str, Path]
    batches: tuple[int, ...]  # the first is that of most goals, the last the paper's
    variants: tuple[str, ...]
    precisions: tuple[str, ...]  # of upscaling
    steps: int  # timed, of each
    matrix_side: int
    photographs: int  # that the training run reads
    training_steps: int
    log_every_steps: int
    upscaled: str  # size of an LR image
    repeats: int  # timed calls of each way to upscale it


def full_plan() -> Plan:
    return Plan(
        recipes={name: ROOT / f"options/{name}.yml" for name in RECIPES},
        batches=(8, 32),
        variants=tuple(VARIANTS),
        precisions=("bf16", "fp16"),
        steps=10,
        matrix_side=8192,
        photographs=32,
        training_steps=200,
        log_every_steps=50,
        upscaled="480x480",
        repeats=5,
    )


def quick_plan(scratch: Path) -> Plan:
    tiny = scratch / f"{RECIPES[0]}.yml"
    tiny.write_text(yaml.safe_dump({"extends": str(ROOT / f"options/{RECIPES[0]}.yml"), "name": RECIPES[0], **TINY}))
    return Plan(
        recipes={RECIPES[0]: tiny},
        batches=(2,),
        variants=(RELEASED, DEFAULT, EAGER),
        precisions=("bf16",),
        steps=1,
        matrix_side=256,
        photographs=2,
        training_steps=4,
        log_every_steps=2,
        upscaled="24x16",
        repeats=1,
    )


def combinations(plan: Plan) -> list[tuple[str, int, str]]:
    return [(name, batch, variant) for name in plan.recipes for batch in plan.batches for variant in plan.variants]


def key(name: str, batch: int, variant: str) -> str:
    return f"{name}, batch {batch}, {variant}"
