"""results.md, results.csv and results.json."""

import csv
import io
import json
import math
import re

import pytest

from sed_sr.utils.evaluation.results import BenchmarkScores, Result
from sed_sr.utils.report.data_files import PROTOCOL, as_csv, as_json, as_markdown
from sed_sr.utils.report.tables import score_tables
from tests.utils.report.conftest import METRICS, result, rows_of, texts


def test_missing_score_is_empty_in_csv_and_left_out_of_the_means_in_json():
    first = result("a", [30.0, 31.0, 32.0], [0.1, None, 0.3], row="RRDB+P")
    other = result("b", [math.inf, 30.0, 33.0], [None, 0.2, 0.4])
    rows = list(csv.DictReader(io.StringIO(as_csv([first, other], METRICS))))
    assert [row["lpips"] for row in rows[:3]] == ["0.1", "", "0.3"]
    assert rows[3]["psnr"] == "inf"
    found = as_json([first, other], METRICS)
    scores = found["weights"][0]["benchmarks"]["Set5"]
    assert (scores["mean"]["lpips"], scores["standard_error"]["lpips"]) == pytest.approx((0.2, 0.1))
    assert (scores["images_scored"], scores["images_total"]) == ({"psnr": 3, "lpips": 2}, 3)
    assert [comparison["images"] for comparison in found["comparisons"]] == [3, 1]


def test_markdown_has_the_cells_of_the_tables_with_the_best_in_bold():
    results = [result("a", [30, 32], [0.1, 0.3], row="RRDB+U"), result("b", [31, 33], [0.2, 0.4])]
    lines = as_markdown(results, METRICS).splitlines()
    assert "| benchmark | weights | PSNR-Y ↑ | LPIPS ↓ |" in lines
    assert "| Set5 (2 images) | b | **32.00 ±1.00** | 0.3000 ±0.1000 |" in lines
    for table in score_tables(results, METRICS):
        for row in rows_of(table).values():
            for cell in row.cells:
                assert any(cell.text in line and row.name.split("+")[0] in line for line in lines)


@pytest.mark.parametrize("label", ["a|b", "a,b", "*a*", "_a_", "<b>", "[a](b)", "`a`", "a\nb", 'a"b', "a\\|b", "&lt;"])
def test_labels_are_escaped_in_markdown_and_csv(label):
    results = [result(label, [30, 32], [0.1, 0.3]), result("other", [30, 31], [0.1, 0.3])]
    lines = [line for line in as_markdown(results, METRICS).splitlines() if line.startswith("|")]
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 5  # separators of 4 cells
    unescaped = [re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", line) for line in lines]
    assert any(f"| {' '.join(label.split())} |" in line for line in unescaped)
    for special in set(label) & set("*_<`["):
        name = next(line for line in lines if "30.00" in line or "31.00" in line).split(" | ")[1]
        assert f"\\{special}" in name
    rows = list(csv.DictReader(io.StringIO(as_csv(results, METRICS), newline="")))
    assert {row["weights"] for row in rows} == {label, "other"}


def test_csv_has_every_score_in_full_precision():
    results = [result("a", [30.1, math.inf], [0.1, 1 / 3]), result("b", [31.0, 29.0], [0.2, 0.4])]
    results[1].benchmarks["photos"] = BenchmarkScores({"x": {}})
    rows = list(csv.DictReader(io.StringIO(as_csv(results, METRICS))))
    assert [(row["weights"], row["benchmark"], row["image"]) for row in rows] == [
        ("a", "Set5", "0"),
        ("a", "Set5", "1"),
        ("b", "Set5", "0"),
        ("b", "Set5", "1"),
        ("b", "photos", "x"),
    ]
    assert float(rows[1]["psnr"]) == math.inf
    assert float(rows[1]["lpips"]) == 1 / 3
    assert rows[-1]["psnr"] == ""


def test_json_has_all_results_and_is_valid_with_infinite_scores():
    first = result("a", [math.inf, 31.0, 32.0], [0.1, 0.2, 0.3], row="RRDB+P")
    other = result("b", [30.0, 31.0, 32.0], [0.1, 0.2, math.inf])
    text = json.dumps(as_json([first, other], METRICS), allow_nan=False)
    found = json.loads(text)
    a, b = found["weights"]
    assert found["protocol"] == PROTOCOL
    assert found["metrics"]["lpips"] == {"title": "LPIPS", "lower_is_better": True}
    assert (a["label"], a["source"], a["about"], a["paper_row"]) == ("a", "a.pth", "RRDB, x4", "RRDB+P")
    assert a["benchmarks"]["Set5"]["images"]["0"] == {"psnr": None, "lpips": 0.1}
    assert a["benchmarks"]["Set5"]["mean"] == {"psnr": None, "lpips": pytest.approx(0.2)}
    assert b["benchmarks"]["Set5"]["standard_error"] == {"psnr": pytest.approx(1 / math.sqrt(3)), "lpips": None}
    assert [comparison["metric"] for comparison in found["comparisons"]] == ["psnr", "lpips"]
    assert all(comparison["mean_difference"] is None for comparison in found["comparisons"])


def test_comparisons_in_json_equal_the_table():
    first = result("a", [30.0, 20.0, 40.0, 25.0, 35.0], [0.1, 0.2, 0.3, 0.2, 0.2])
    other = result("b", [30.5, 20.6, 40.4, 25.5, 35.5], [0.1, 0.3, 0.2, 0.2, 0.2])
    psnr, _ = as_json([first, other], METRICS)["comparisons"]
    low, high = psnr["interval_95"]
    cell = texts(rows_of(score_tables([first, other], METRICS)[1])["b"])[0]
    assert cell == f"{psnr['mean_difference']:+.2f} [{low:+.2f},{high:+.2f}]*"
    assert (psnr["baseline"], psnr["weights"], psnr["images"]) == ("a", "b", 5)


def test_order_of_the_images_does_not_matter():
    first = result("a", [30.0, 20.0, 40.0, 25.0, 35.0], [0.1, 0.2, 0.3, 0.2, 0.2])
    shuffled = BenchmarkScores(dict(reversed(first.benchmarks["Set5"].images.items())))
    same = Result("b", "b.pth", 4, "RRDB, x4", None, {"Set5": shuffled})
    assert all(comparison["interval_95"] == (0, 0) for comparison in as_json([first, same], METRICS)["comparisons"])


def test_markdown_of_results_without_scores_is_empty():
    results = [Result("a", "a.pth", 4, "RRDB, x4", None, {"photos": BenchmarkScores({"x": {}})})]
    assert as_markdown(results, METRICS) == ""
