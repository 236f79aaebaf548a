"""The rooms stand in an order, and nothing imports what stands above it: any piece can be used alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("options", "models", "data", "utils")
LEAVES = {
    "utils.errors": set(),
    "options.schema": {"utils.errors"},
    "options.describe": {"utils.errors", "options.schema"},
    "models.rrdb": {"utils.errors"},
    "models.schedules": set(),
    "models.swinir": {"utils.errors"},
    "models.semantic_fusion": {"utils.errors"},
    "models.pretrained": {"utils.errors"},
    "models.semantic_extractor": {
        "utils.errors",
        "utils.checkpoint",
        "utils.weights",
        "utils.wrappers",
        "models.pretrained",
    },
    "models.losses": {"utils.errors", "models.pretrained"},
    "models.discriminators": {"utils.errors", "models.semantic_fusion", "models.spectral_norm"},
    "models.diagnostics": set(),
    "models.semantic_views": {"models.semantic_fusion"},
    "models.precision": set(),
    "models.cuda_graph": set(),
    "models.gradients": set(),
    "models.outcome": set(),
    "models.spectral_norm": set(),
    "models.train_step": {
        "models.cuda_graph",
        "models.diagnostics",
        "models.gradients",
        "models.losses",
        "models.outcome",
        "models.precision",
    },
    "data.images": {"utils.errors", "utils.files"},
    "data.imresize": {"utils.errors", "utils.entry", "data.images", "data.image_jobs"},
    "data.pack": {"utils.errors", "utils.files"},
    "data.image_folders": {"utils.errors", "data.pack", "utils.signals", "data.images"},
    "data.pairs": {"utils.errors", "data.pack", "data.images", "data.image_folders"},
    "data.pair_content": {"utils.errors", "data.images", "data.image_folders", "data.imresize", "data.pairs"},
    "data.degradation.jpeg": set(),
    "data.degradation.noise": set(),
    "data.degradation.kernels": set(),
    "data.degradation.sharpen": {"data.degradation.kernels"},
    "data.degradation.pipeline": {"data.degradation.jpeg", "data.degradation.kernels", "data.degradation.noise"},
    "data.degradation.pool": set(),
    "data.degradation.degrade_folder": {
        "utils.errors",
        "utils.files",
        "data.image_jobs",
        "data.images",
        "data.degradation.pipeline",
    },
    "data.degradation.sheet": {"data.images", "data.degradation.kernels", "data.degradation.pipeline"},
    "data.datasets": {"utils.errors", "utils.signals", "data.images", "data.image_folders", "data.pack", "data.pairs"},
    "data.benchmarks": {
        "utils.errors",
        "utils.entry",
        "data.images",
        "data.image_jobs",
        "data.pairs",
        "data.prepare_benchmark",
    },
    "data.prepare_benchmark": {"utils.errors", "data.images", "data.imresize", "data.image_jobs"},
    "utils.download": {"utils.errors", "utils.files"},
    "utils.files": {"utils.errors"},
    "utils.memory": set(),
    "utils.paper_scores": {"utils.errors"},
    "utils.signals": set(),
    "utils.gan_watch": set(),
    "utils.architecture": set(),
    "utils.wrappers": {"utils.errors"},
    "utils.generator_weights": {"utils.errors", "utils.architecture", "utils.wrappers"},
    "utils.generator_file": {"utils.errors", "utils.architecture", "utils.checkpoint", "utils.generator_weights"},
    "utils.checkpoint": {"utils.errors", "utils.files"},
    "utils.pyiqa_metrics": {"utils.errors", "utils.memory"},
    "utils.metrics": {"utils.errors", "utils.checkpoint", "utils.pyiqa_metrics", "utils.weights"},
    "utils.statistics": set(),
    "utils.tiles": {"data.images"},
    "utils.figure": set(),
    "utils.training_pairs": {
        "models.train_step",
        "data.images",
        "data.degradation.pipeline",
        "data.degradation.pool",
    },
}
KNOW_THE_OPTIONS = {
    "models.build",
    "options.describe",
    "utils.arguments",
    "utils.judge",
    "utils.preflight",
    "utils.prepare",
    "utils.resume",
    "utils.train_loop",
    "utils.training_run",
    "test",
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name.split(".")[0] in (*ROOMS, "train", "test", "extract_subimages")}


def modules() -> dict[str, set[str]]:
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py"))
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name: {target for target in imports(file) if target in names} for name, file in names.items()}


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_imports_only_what_stands_below_it(leaf):
    assert modules()[leaf] <= LEAVES[leaf]


def test_nothing_imports_an_entry_script():
    for name, targets in modules().items():
        assert not targets & {"train", "test", "extract_subimages"}, name


def test_only_few_know_the_option_tree():
    assert {name for name, targets in modules().items() if "options.schema" in targets} == KNOW_THE_OPTIONS


def test_no_import_cycle():
    graph = modules()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
