"""Tables and files of results, from scores that are made up so that the right answer is known."""

import csv
import io
import json
import math
import re

import pytest

from utils.evaluate import BenchmarkScores
from utils.metrics import Metric
from utils.paper_scores import PAPER
from utils.results import PROTOCOL, Result, as_csv, as_json, as_markdown, score_tables


def metric(name, title, **properties):
    return Metric(name, title, compute=lambda sr, hr: math.nan, **properties)


METRICS = {
    "psnr": metric("psnr", "PSNR-Y", decimals=2),
    "lpips": metric("lpips", "LPIPS", lower_is_better=True),
}


def result(label, psnr, lpips, *, row=None, benchmark="Set5", **others):
    """Scores of as many images as `psnr` and `lpips` are long."""
    images = {f"{n}": {"psnr": p, "lpips": q} for n, (p, q) in enumerate(zip(psnr, lpips, strict=True))}
    return Result(label, f"{label}.pth", "RRDB, x4", row, {benchmark: BenchmarkScores(images), **others})


def rows_of(table):
    return {row.name: row for rows in table.sections.values() for row in rows}


def texts(row):
    return [cell.text for cell in row.cells]


def bold(row):
    return [cell.best for cell in row.cells]


def test_best_is_the_highest_or_the_lowest_as_the_metric_goes():
    results = [result("a", [30, 32], [0.1, 0.3]), result("b", [31, 33], [0.2, 0.4]), result("c", [29, 30], [0.1, 0.5])]
    rows = rows_of(score_tables(results, METRICS)[0])
    assert {label: bold(row) for label, row in rows.items()} == {
        "a": [False, True],
        "b": [True, False],
        "c": [False, False],
    }


def test_nothing_is_the_best_of_one_or_of_equals():
    one, other = result("a", [30, 32], [0.1, 0.3]), result("b", [30, 32], [0.1, 0.2])
    assert bold(rows_of(score_tables([one], METRICS)[0])["a"]) == [False, False]
    assert bold(rows_of(score_tables([one, other], METRICS)[0])["b"]) == [False, True]


def test_score_that_is_not_a_number_is_never_the_best_and_an_infinite_one_can_be(recwarn):
    results = [
        result("a", [30, 31], [0.1, math.nan]),
        result("b", [math.inf, 31], [0.2, 0.4]),
        result("c", [30, 32], [0.3, 0.4]),
    ]
    rows = rows_of(score_tables(results, METRICS)[0])
    assert texts(rows["a"])[1] == "-"
    assert texts(rows["b"])[0] == "inf"
    assert [bold(rows[label]) for label in "abc"] == [[False, False], [True, True], [False, False]]
    assert not recwarn.list


def test_cell_is_the_mean_and_its_standard_error():
    # Of 30 and 32: deviation sqrt(2), error sqrt(2) / sqrt(2) = 1. One image has no error.
    rows = rows_of(score_tables([result("a", [30, 32], [0.1, 0.3]), result("b", [30], [0.1])], METRICS)[0])
    assert texts(rows["a"]) == ["31.00 ±1.00", "0.2000 ±0.1000"]
    assert texts(rows["b"]) == ["30.00", "0.1000"]


def test_published_scores_stand_below_with_what_ours_differ_by():
    published = PAPER["RRDB+P+SeD"]["Set5"]
    results = [result("a", [31.34], [0.062], row="RRDB+P+SeD"), result("bicubic", [28.40], [0.35], row="bicubic")]
    table, _ = score_tables(results, METRICS)
    ours, theirs, *_, bicubic = table.sections["Set5 (1 image)"]
    assert (ours.aside, theirs.aside, theirs.name) == (False, True, "paper: RRDB+P+SeD")
    assert texts(theirs) == [
        f"{published.psnr:.2f} ({31.34 - published.psnr:+.2f})",
        f"{published.lpips:.4f} ({0.062 - published.lpips:+.4f})",
    ]
    assert texts(bicubic)[1] == "-"  # nobody has published it
    assert not any(cell.best for cell in (*theirs.cells, *bicubic.cells))


def test_benchmark_that_the_paper_does_not_have_gets_no_published_row():
    table, *_ = score_tables([result("a", [31], [0.1], row="RRDB+P+SeD", benchmark="Mine")], METRICS)
    assert [row.name for row in table.sections["Mine (1 image)"]] == ["a"]
    assert "paper" not in table.caption


def test_published_row_has_a_score_to_compare_with_or_is_not_there():
    bicubic = result("bicubic", [28.40], [0.35], row="bicubic")  # whose LPIPS nobody has published
    (table,) = score_tables([bicubic], {"lpips": METRICS["lpips"]})
    assert [row.name for row in table.sections["Set5 (1 image)"]] == ["bicubic"]
    assert "paper" not in table.caption


def test_scores_that_are_not_numbers_are_absent_and_counted():
    first = result("a", [30.0, 31.0, 32.0], [0.1, math.nan, math.nan], row="RRDB+P")
    other = result("b", [math.inf, 30.0, 33.0], [0.1, 0.2, 0.3])
    third = result("c", [30.0, math.inf, 33.0], [0.1, 0.2, 0.3])  # differs from b by -inf, then inf
    scores, differences = score_tables([first, other], METRICS)
    ours, theirs, of_b = scores.sections["Set5 (3 images)"]
    assert (texts(ours)[1], texts(theirs)[1]) == ("-", format(PAPER["RRDB+P"]["Set5"].lpips, ".4f"))
    assert texts(of_b)[0] == "inf"
    assert scores.caption.endswith("; LPIPS: no score for 2 of 3 images (a, Set5)")
    assert texts(rows_of(differences)["b"]) == ["+inf", "-"]
    assert texts(rows_of(score_tables([other, third], METRICS)[1])["c"])[0] == "-"
    assert "nan" not in as_markdown([first, other], METRICS)
    rows = list(csv.DictReader(io.StringIO(as_csv([first, other], METRICS))))
    assert [row["lpips"] for row in rows[:3]] == ["0.1", "", ""]
    assert rows[3]["psnr"] == "inf"


def test_differences_are_to_the_first_and_marked_where_chance_is_excluded():
    first = result("first", [30.0, 20.0, 40.0, 25.0, 35.0], [0.1, 0.2, 0.3, 0.2, 0.2])
    better = result("better", [30.5, 20.6, 40.4, 25.5, 35.5], [0.1, 0.3, 0.2, 0.2, 0.2])
    _, table = score_tables([first, better], METRICS)
    assert table.title == "differences to first"
    psnr, lpips = texts(rows_of(table)["better"])
    assert re.fullmatch(r"\+0\.50 \[\+0\.4\d,\+0\.[56]\d\]\*", psnr)
    assert re.fullmatch(r"[+-]0\.0000 \[-0\.\d{4},\+0\.\d{4}\]", lpips)


def test_one_of_the_weights_has_nothing_to_differ_from():
    assert [table.title for table in score_tables([result("a", [30], [0.1])], METRICS)] == ["scores"]


def test_weights_that_failed_somewhere_have_no_score_there_and_are_not_compared():
    broken = BenchmarkScores({"0": {"psnr": 30.0, "lpips": 0.1}}, failures=("1 could not be upscaled",))
    other = Result("b", "b.pth", "RRDB, x4", None, {"Set5": broken})
    tables = score_tables([result("a", [30, 31], [0.1, 0.2]), other], METRICS)
    assert texts(rows_of(tables[0])["b"]) == ["-", "-"]
    assert len(tables) == 1
    assert as_json([result("a", [30, 31], [0.1, 0.2]), other], METRICS)["comparisons"] == []


def test_folder_without_ground_truth_has_the_scores_that_need_none():
    niqe = metric("niqe", "NIQE", lower_is_better=True, needs_ground_truth=False)
    photos = BenchmarkScores({"x": {"niqe": 4.5}, "y": {"niqe": 5.5}})
    nothing = BenchmarkScores({"x": {}})
    results = [result("a", [30], [0.1], photos=photos, nothing=nothing)]
    (table,) = score_tables(results, {**METRICS, "niqe": niqe})
    assert list(table.sections) == ["Set5 (1 image)", "photos (2 images)"]
    assert texts(table.sections["photos (2 images)"][0]) == ["-", "-", "5.0000 ±0.5000"]


def test_nothing_scored_is_no_table():
    results = [Result("a", "a.pth", "RRDB, x4", None, {"photos": BenchmarkScores({"x": {}})})]
    assert score_tables(results, METRICS) == []
    assert as_markdown(results, METRICS) == ""


def test_markdown_has_the_cells_of_the_tables_the_best_in_bold():
    results = [result("a", [30, 32], [0.1, 0.3], row="RRDB+U"), result("b", [31, 33], [0.2, 0.4])]
    lines = as_markdown(results, METRICS).splitlines()
    assert "| benchmark | weights | PSNR-Y ↑ | LPIPS ↓ |" in lines
    assert "| Set5 (2 images) | b | **32.00 ±1.00** | 0.3000 ±0.1000 |" in lines
    for table in score_tables(results, METRICS):
        for row in rows_of(table).values():
            for cell in row.cells:
                assert any(cell.text in line and row.name.split("+")[0] in line for line in lines)


@pytest.mark.parametrize("label", ["a|b", "a,b", "*a*", "_a_", "<b>", "[a](b)", "`a`", "a\nb", 'a"b', "a\\|b", "&lt;"])
def test_labels_are_names_in_markdown_and_csv_whatever_they_look_like(label):
    results = [result(label, [30, 32], [0.1, 0.3]), result("other", [30, 31], [0.1, 0.3])]
    lines = [line for line in as_markdown(results, METRICS).splitlines() if line.startswith("|")]
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 5  # what separates cells, of those with 4
    unescaped = [re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", line) for line in lines]
    assert any(f"| {' '.join(label.split())} |" in line for line in unescaped)
    for special in set(label) & set("*_<`["):
        name = next(line for line in lines if "30.00" in line or "31.00" in line).split(" | ")[1]
        assert f"\\{special}" in name
    rows = list(csv.DictReader(io.StringIO(as_csv(results, METRICS), newline="")))
    assert {row["weights"] for row in rows} == {label, "other"}


def test_csv_has_every_score_of_every_image_to_the_last_digit():
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


def test_json_has_everything_and_is_json_even_of_infinite_scores():
    first = result("a", [math.inf, 31.0, 32.0], [0.1, 0.2, 0.3], row="RRDB+P")
    other = result("b", [30.0, 31.0, 32.0], [0.1, 0.2, math.nan])
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


def test_comparisons_in_json_are_those_of_the_table():
    first = result("a", [30.0, 20.0, 40.0, 25.0, 35.0], [0.1, 0.2, 0.3, 0.2, 0.2])
    other = result("b", [30.5, 20.6, 40.4, 25.5, 35.5], [0.1, 0.3, 0.2, 0.2, 0.2])
    psnr, _ = as_json([first, other], METRICS)["comparisons"]
    low, high = psnr["interval_95"]
    cell = texts(rows_of(score_tables([first, other], METRICS)[1])["b"])[0]
    assert cell == f"{psnr['mean_difference']:+.2f} [{low:+.2f},{high:+.2f}]*"
    assert (psnr["baseline"], psnr["weights"], psnr["images"]) == ("a", "b", 5)


def test_order_in_which_images_were_scored_does_not_matter():
    first = result("a", [30.0, 20.0, 40.0, 25.0, 35.0], [0.1, 0.2, 0.3, 0.2, 0.2])
    shuffled = BenchmarkScores(dict(reversed(first.benchmarks["Set5"].images.items())))
    same = Result("b", "b.pth", "RRDB, x4", None, {"Set5": shuffled})
    assert all(comparison["interval_95"] == (0, 0) for comparison in as_json([first, same], METRICS)["comparisons"])
