"""The report on a GPU, made on a CPU with tiny networks."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import idle_share

RECIPE = "train_rrdb_P+SeD, batch 2"
FP32 = {"images_per_s": 2.0, "seconds_per_step": 1.0, "tflop_per_step": 0.5, "peak_memory_gib": 4.0}


def test_report_goes_on_where_it_was_and_failures_are_rows(tmp_path: Path, command):
    """All was measured but one step, and one has failed."""
    kept = tmp_path / "kept.jsonl"
    rows = [
        {"what": "matrix rate", "device": "a device", "tflops": 1.0},
        {"what": f"{RECIPE}, fp32", **FP32},
        {"what": f"{RECIPE}, tf32", "error": "out of memory"},
        {"what": "profile", "step": f"{RECIPE}, fp32", "idle": 0.25, "kernels": [["convolution", 0.75]]},
        {"what": "training run", "recipe": "r", "batch": 2, "images_per_s": 3.0, "seconds": {"step_s": 9, "save_s": 1}},
        {"what": "upscaling, rrdb", "output": "4 megapixels/s\n"},
        {"what": "upscaling, swinir", "error": "no such network"},
    ]
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command("benchmarks/gpu.py", "--device", "cpu", "--quick", "--output", kept, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *before, measured = map(json.loads, kept.read_text().splitlines())
    assert before == rows
    assert measured["what"] == f"{RECIPE}, bf16"
    rate, share = measured["images_per_s"], 0.5 / measured["seconds_per_step"]
    for line in (
        f"| train_rrdb_P+SeD | 2 | bf16 | {rate:.4g} | {rate / 2:.2f} | {share:.1%} |",
        "| train_rrdb_P+SeD | 2 | fp32 | 2 | 1.00 | 50.0% | 4 | 0% |",
        "| train_rrdb_P+SeD | 2 | tf32 | out of memory |",
        "idle 25.0% of the time",
        "| 75.0% | `convolution` |",
        "step 90.00%, save 10.00%",
        "4 megapixels/s",
        "no such network",
    ):
        assert line in done.stdout


def test_overlapping_kernels_keep_a_gpu_busy_once():
    assert idle_share([(0, 4), (1, 2), (3, 6), (8, 10)]) == pytest.approx(0.2)
