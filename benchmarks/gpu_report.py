"""The report of `benchmarks/gpu.py`: tables in Markdown, and which goals were met."""

from collections.abc import Callable

from benchmarks.gpu_plan import (
    BF16,
    COMPILED,
    DEFAULT,
    EAGER,
    GRAPHS,
    RELEASED,
    UPSCALERS,
    Plan,
    Row,
    combinations,
    key,
)
from benchmarks.inference import SPANDREL


def report(plan: Plan, rows: dict[str, Row]) -> str:
    """All that was measured, in Markdown."""
    lines = []
    if "tflops" in rows.get("matrix rate", {}):
        found = rows["matrix rate"]
        rate = f"bf16 matrix product {found['tflops']:.4g} TFLOP/s"
        lines += [f"{found['device']}, PyTorch {found['torch']}, {rate}", ""]
    lines += [
        "| recipe | batch | variant | images/s | ratio | of matrix rate | idle | memory (reserved), GiB | ready (s) |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, batch, variant in combinations(plan):
        cells = " | ".join(step_cells(rows, name, batch, variant))
        lines.append(f"| {name} | {batch} | {variant} | {cells} |")
    notes = dict.fromkeys(f"{row['what']}: {note}" for row in rows.values() for note in row.get("notes", ()))
    lines += [f"\n{note}" for note in notes]
    for what in profiles_shown(plan, rows):
        row = rows[what]
        lines += ["", f"Profile of {what}: {row['kernels_per_step']} kernels a step, idle {row['idle']:.1%}", ""]
        lines += ["| share | kernel |", "|--:|---|"]
        lines += [f"| {share:.1%} | `{kernel}` |" for kernel, share in row["kernels"]]
    lines += ["", f"train.py: {training_words(rows.get('training run'))}"]
    lines += ["", f"train.py, deterministic: {resuming_words(rows)}"]
    lines += [
        "",
        f"| LR {plan.upscaled} | upscaled by | seconds | times spandrel | PSNR to float32 (dB) |",
        "|---|---|--:|--:|--:|",
    ]
    for network in UPSCALERS:
        lines += upscaling_lines(network, rows.get(f"upscaling, {network}"))
    lines += ["", "| goal | | figures |", "|---|---|---|"]
    lines += [f"| {goal} | {verdict} | {figures} |" for goal, verdict, figures in goals(plan, rows)]
    return "\n".join(lines)


def problem_of(row: Row | None) -> str | None:
    """Why there are no figures; None where there are some."""
    if row is None:
        return "not measured"
    return row["error"].replace("|", "/") if "error" in row else None


def step_cells(rows: dict[str, Row], name: str, batch: int, variant: str) -> list[str]:
    row = rows.get(key(name, batch, variant))
    if problem_of(row):
        return [problem_of(row), "", "", "", "", ""]
    ratio, share = ratio_of(rows, name, batch, row), matrix_share(rows, name, batch, row)
    return [
        f"{row['images_per_s']:.4g}",
        "" if ratio is None else f"{ratio:.2f}",
        "" if share is None else f"{share:.1%}",
        f"{row['idle']:.1%}" if "idle" in row else "",
        f"{row['peak_memory_gib']:.3g} ({row['reserved_gib']:.3g})",
        f"{row['ready_s']:.3g}",
    ]


def released(rows: dict[str, Row], name: str, batch: int) -> Row | None:
    row = rows.get(key(name, batch, RELEASED))
    return None if problem_of(row) else row


def ratio_of(rows: dict[str, Row], name: str, batch: int, row: Row | None) -> float | None:
    """Images per second beside those of the released-style step."""
    other = released(rows, name, batch)
    return row["images_per_s"] / other["images_per_s"] if row and other else None


def memory_saved(rows: dict[str, Row], name: str, batch: int, row: Row | None) -> float | None:
    """Share of the released-style step's memory that a step does without."""
    other = released(rows, name, batch)
    return 1 - row["peak_memory_gib"] / other["peak_memory_gib"] if row and other else None


def matrix_share(rows: dict[str, Row], name: str, batch: int, row: Row | None) -> float | None:
    """Operations per second of a step beside those of a product of matrices."""
    rate, flop = rows.get("matrix rate"), rows.get(f"operations, {name}")
    if not row or problem_of(rate) or problem_of(flop):
        return None
    return batch * flop["tflop_per_image"] / row["seconds_per_step"] / rate["tflops"]


def fastest_bf16(plan: Plan, rows: dict[str, Row], name: str, batch: int) -> Row | None:
    found = [rows.get(key(name, batch, variant)) for variant in plan.variants if variant in BF16]
    return max((row for row in found if not problem_of(row)), key=lambda row: row["images_per_s"], default=None)


def profiles_shown(plan: Plan, rows: dict[str, Row]) -> list[str]:
    """The recorded steps that use the GPU best and worst, and the one of the first recipe that is not recorded."""
    shares = {}
    for name, batch, variant in combinations(plan):
        row = rows.get(key(name, batch, variant))
        share = None if problem_of(row) else matrix_share(rows, name, batch, row)
        if variant in (GRAPHS, COMPILED) and share is not None:
            shares[row["what"]] = share
    shown = [max(shares, key=shares.get), min(shares, key=shares.get)] if shares else []
    eager = key(next(iter(plan.recipes)), plan.batches[0], EAGER)
    return list(dict.fromkeys([*shown, *([] if problem_of(rows.get(eager)) else [eager])]))


def training_words(row: Row | None) -> str:
    if problem_of(row):
        return problem_of(row)
    total_s = sum(row["seconds"].values())
    shares = (f"{part.removesuffix('_s')} {spent_s / total_s:.2%}" for part, spent_s in row["seconds"].items())
    return (
        f"{row['recipe']}, batch {row['batch']}, bf16: first step after {row['first_step_s']:.3g} s, then "
        f"{row['images_per_s']:.4g} images/s; of the time {', '.join(shares)}"
    )


def resuming_words(rows: dict[str, Row]) -> str:
    row = rows.get("resumed run")
    if problem_of(row):
        return problem_of(row)
    first, rest = row["steps"]
    plain = rows.get(key(row["recipe"], row["batch"], GRAPHS))
    cost = "" if problem_of(plain) else f", {row['images_per_s'] / plain['images_per_s']:.2f}x the recorded bf16 step"
    same = f"differs in {row['differing']} tensors from" if row["differing"] else "equals, bit for bit,"
    speed = f"{row['recipe']}, batch {row['batch']}, bf16: {row['images_per_s']:.4g} images/s{cost}"
    return f"{speed}; a run that goes on for {rest} steps from a state of step {first} {same} one that was not stopped"


def upscaling_lines(network: str, row: Row | None) -> list[str]:
    if problem_of(row):
        return [f"| {network} | {problem_of(row)} | | | |"]
    lines = []
    for way in row["ways"]:
        psnr = way.get("psnr_to_fp32")
        cells = (network, way["by"], way["seconds"], way["times_spandrel"], "" if psnr is None else psnr)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def goals(plan: Plan, rows: dict[str, Row]) -> list[tuple[str, str, str]]:
    """Each goal, whether it was met, and the figures that say so."""
    first, last = plan.batches[0], plan.batches[-1]
    default = {name: rows.get(key(name, first, DEFAULT)) for name in plan.recipes}
    default = {name: None if problem_of(row) else row for name, row in default.items()}
    best = {name: fastest_bf16(plan, rows, name, first) for name in plan.recipes}
    large = {name: fastest_bf16(plan, rows, name, last) for name in plan.recipes if "rrdb" in name}
    training = rows.get("training run")

    def each(figure: Callable[[Row], float | None], of: dict[str, Row | None]) -> dict[str, float | None]:
        return {name: None if row is None else figure(row) for name, row in of.items()}

    return [
        goal(
            f"out of the box, batch {first}: at least 1.5x the released-style step",
            {name: ratio_of(rows, name, first, row) for name, row in default.items()},
            at_least=1.5,
            form="{:.2f}x",
        ),
        goal(
            f"bf16, batch {first}: at least 4x the released-style step",
            {name: ratio_of(rows, name, first, row) for name, row in best.items()},
            at_least=4,
            form="{:.2f}x",
        ),
        goal(
            f"bf16, RRDB, batch {last}: at least 30 % of the matrix rate",
            {name: matrix_share(rows, name, last, row) for name, row in large.items()},
            at_least=0.3,
            form="{:.1%}",
        ),
        goal(
            f"bf16, RRDB, batch {last}: at least 300 images/s",
            each(lambda row: row["images_per_s"], large),
            at_least=300,
            form="{:.4g}",
        ),
        goal(
            f"fastest bf16 step, batch {first}: idle under 10 %",
            each(lambda row: row["idle"], best),
            under=0.1,
            form="{:.1%}",
        ),
        goal(
            "from the command to the first step: under 60 s",
            {"train.py": None if problem_of(training) else training["first_step_s"]},
            under=60,
            form="{:.3g} s",
        ),
        goal(
            f"compilation, batch {first}: under 30 s",
            {name: compilation_s(rows, name, first) for name in plan.recipes},
            under=30,
            form="{:.3g} s",
        ),
        goal(
            f"fastest bf16 step, batch {first}: peak memory at least 40 % below the released-style step's",
            {name: memory_saved(rows, name, first, row) for name, row in best.items()},
            at_least=0.4,
            form="{:.0%}",
        ),
        goal(
            "upscaling: at least 2x spandrel in float32 with TF32",
            {network: fastest_upscaling(rows.get(f"upscaling, {network}")) for network in UPSCALERS},
            at_least=2,
            form="{:.2f}x",
        ),
    ]


def goal(
    text: str,
    figures: dict[str, float | None],
    *,
    form: str,
    at_least: float = float("-inf"),
    under: float = float("inf"),
) -> tuple[str, str, str]:
    """A goal for all of the figures, of which those that are None were not measured."""
    known = [figure for figure in figures.values() if figure is not None]
    if any(not at_least <= figure < under for figure in known):
        verdict = "missed"
    else:
        verdict = "met" if len(known) == len(figures) else "not measured"
    words = (f"{name} {'-' if figure is None else form.format(figure)}" for name, figure in figures.items())
    return text, verdict, ", ".join(words)


def compilation_s(rows: dict[str, Row], name: str, batch: int) -> float | None:
    """How much longer it takes until a compiled step is ready."""
    compiled, plain = (rows.get(key(name, batch, variant)) for variant in (COMPILED, GRAPHS))
    return None if problem_of(compiled) or problem_of(plain) else compiled["ready_s"] - plain["ready_s"]


def fastest_upscaling(row: Row | None) -> float | None:
    """Of all ways, beside spandrel's."""
    if problem_of(row):
        return None
    return max(way["times_spandrel"] for way in row["ways"] if way["by"] != SPANDREL)
