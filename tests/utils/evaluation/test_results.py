"""Tables and files of results, from scores that are made up so that the right answer is known."""

import csv
import io
import json
import math
import re

import pytest

from sed_sr.utils.evaluation.evaluate import BenchmarkScores
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.paper_scores import PAPER
from sed_sr.utils.evaluation.results import PROTOCOL, Result, as_csv, as_json, as_markdown, score_tables


def metric(name, title, **properties):
    return Metric(name, title, compute=lambda sr, hr: math.nan, **properties)


METRICS = {
    "psnr": metric("psnr", "PSNR-Y", decimals=2),
    "lpips": metric("lpips", "LPIPS", lower_is_better=True),
}


def result(label, psnr, lpips, *, row=None, benchmark="Set5", **others):
    """Scores of as many images as `psnr` and `lpips` are long; None: it could not be computed."""
    columns = {"psnr": psnr, "lpips": lpips}
    images = {
        str(number): {name: scores[number] for name, scores in columns.items() if scores[number] is not None}
        for number in range(len(psnr))
    }
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


def test_infinite_score_can_be_the_best(recwarn):
    results = [result("a", [30, 31], [0.1, 0.2]), result("b", [math.inf, 31], [0.2, 0.4])]
    rows = rows_of(score_tables(results, METRICS)[0])
    assert texts(rows["b"])[0] == "inf"
    assert [bold(rows[label]) for label in "ab"] == [[False, True], [True, False]]
    assert not recwarn.list


def test_means_over_different_images_are_not_ranked():
    """The mean of b lacks the most difficult image; that of LPIPS is over the same images."""
    results = [result("a", [30, 32, 20], [0.1, 0.3, 0.5]), result("b", [30, 31, None], [0.1, 0.2, 0.3])]
    rows = rows_of(score_tables(results, METRICS)[0])
    assert [bold(rows[label]) for label in "ab"] == [[False, False], [False, True]]


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


def test_mean_over_some_of_the_images_says_so_and_is_not_compared_with_the_papers():
    first = result("a", [30.0, 31.0, 32.0], [0.1, None, 0.3], row="RRDB+P")
    other = result("b", [math.inf, 30.0, 33.0], [None, 0.2, 0.4])
    scores, differences = score_tables([first, other], METRICS)
    ours, theirs, of_b = scores.sections["Set5 (3 images)"]
    assert texts(ours) == ["31.00 ±0.58", "0.2000 ±0.1000 (2/3)"]
    assert "(" in texts(theirs)[0]
    assert texts(theirs)[1] == format(PAPER["RRDB+P"]["Set5"].lpips, ".4f")
    assert texts(of_b) == ["inf", "0.3000 ±0.1000 (2/3)"]
    assert texts(rows_of(differences)["b"]) == ["+inf", "+0.1000 (1/3)"]  # of the image that both have
    for table in (scores, differences):
        assert table.caption.endswith("; (n/m): over n of m images, because the others could not be scored")
    rows = list(csv.DictReader(io.StringIO(as_csv([first, other], METRICS))))
    assert [row["lpips"] for row in rows[:3]] == ["0.1", "", "0.3"]
    assert rows[3]["psnr"] == "inf"
    found = as_json([first, other], METRICS)
    scores = found["weights"][0]["benchmarks"]["Set5"]
    assert (scores["mean"]["lpips"], scores["standard_error"]["lpips"]) == pytest.approx((0.2, 0.1))
    assert (scores["images_scored"], scores["images_total"]) == ({"psnr": 3, "lpips": 2}, 3)
    assert [comparison["images"] for comparison in found["comparisons"]] == [3, 1]


def test_difference_of_opposite_infinities_is_absent():
    first, other = result("b", [math.inf, 30.0], [0.1, 0.2]), result("c", [30.0, math.inf], [0.1, 0.2])
    assert texts(rows_of(score_tables([first, other], METRICS)[1])["c"])[0] == "-"


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


def test_image_that_was_not_upscaled_counts_as_one_without_a_score():
    broken = BenchmarkScores({"0": {"psnr": 30.0}}, failures=("1 could not be upscaled",), not_upscaled=1)
    other = Result("b", "b.pth", "RRDB, x4", None, {"Set5": broken})
    scores, differences = score_tables([result("a", [32, 31], [0.1, 0.2]), other], METRICS)
    assert list(scores.sections) == ["Set5 (2 images)"]
    assert texts(rows_of(scores)["b"]) == ["30.00 (1/2)", "-"]
    assert texts(rows_of(differences)["b"]) == ["-2.00 (1/2)", "-"]


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
