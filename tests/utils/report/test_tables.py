"""Tables of results."""

import math
import re
from dataclasses import replace

from sed_sr.utils.evaluation.paper_scores import PAPER
from sed_sr.utils.evaluation.results import BenchmarkScores, Result
from sed_sr.utils.report.tables import score_tables
from tests.utils.report.conftest import METRICS, bold, metric, result, rows_of, texts


def test_best_is_the_highest_or_lowest_depending_on_the_metric():
    results = [result("a", [30, 32], [0.1, 0.3]), result("b", [31, 33], [0.2, 0.4]), result("c", [29, 30], [0.1, 0.5])]
    rows = rows_of(score_tables(results, METRICS)[0])
    assert {label: bold(row) for label, row in rows.items()} == {
        "a": [False, True],
        "b": [True, False],
        "c": [False, False],
    }


def test_single_or_equal_scores_are_not_marked_as_best():
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


def test_cell_is_the_mean_with_its_standard_error():
    # Of 30 and 32: deviation sqrt(2), error sqrt(2) / sqrt(2) = 1. One image has no error.
    rows = rows_of(score_tables([result("a", [30, 32], [0.1, 0.3]), result("b", [30], [0.1])], METRICS)[0])
    assert texts(rows["a"]) == ["31.00 ±1.00", "0.2000 ±0.1000"]
    assert texts(rows["b"]) == ["30.00", "0.1000"]


def test_published_scores_are_below_ours_with_the_difference():
    published = PAPER["RRDB+P+SeD"]["Set5"]
    results = [result("a", [31.34], [0.062], row="RRDB+P+SeD"), result("bicubic", [28.40], [0.35], row="bicubic")]
    table, _ = score_tables(results, METRICS)
    ours, theirs, *_, bicubic = table.sections["Set5 (1 image)"]
    assert (ours.aside, theirs.aside, theirs.name) == (False, True, "paper: RRDB+P+SeD")
    assert texts(theirs) == [
        f"{published.psnr:.2f} ({31.34 - published.psnr:+.2f})",
        f"{published.lpips:.4f} ({0.062 - published.lpips:+.4f})",
    ]
    assert texts(bicubic)[1] == "-"  # not published
    assert not any(cell.best for cell in (*theirs.cells, *bicubic.cells))


def test_benchmark_that_is_not_in_the_paper_has_no_published_row():
    table, *_ = score_tables([result("a", [31], [0.1], row="RRDB+P+SeD", benchmark="Mine")], METRICS)
    assert [row.name for row in table.sections["Mine (1 image)"]] == ["a"]
    assert "paper" not in table.caption


def test_published_row_without_scores_is_left_out():
    bicubic = result("bicubic", [28.40], [0.35], row="bicubic")  # its LPIPS is not published
    (table,) = score_tables([bicubic], {"lpips": METRICS["lpips"]})
    assert [row.name for row in table.sections["Set5 (1 image)"]] == ["bicubic"]
    assert "paper" not in table.caption


def test_mean_over_some_images_is_marked_and_not_compared_with_the_paper():
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


def test_difference_of_opposite_infinities_is_absent():
    first, other = result("b", [math.inf, 30.0], [0.1, 0.2]), result("c", [30.0, math.inf], [0.1, 0.2])
    assert texts(rows_of(score_tables([first, other], METRICS)[1])["c"])[0] == "-"


def test_differences_are_to_the_first_and_marked_if_significant():
    first = result("first", [30.0, 20.0, 40.0, 25.0, 35.0], [0.1, 0.2, 0.3, 0.2, 0.2])
    better = result("better", [30.5, 20.6, 40.4, 25.5, 35.5], [0.1, 0.3, 0.2, 0.2, 0.2])
    _, table = score_tables([first, better], METRICS)
    assert table.title == "differences to first"
    psnr, lpips = texts(rows_of(table)["better"])
    assert re.fullmatch(r"\+0\.50 \[\+0\.4\d,\+0\.[56]\d\]\*", psnr)
    assert re.fullmatch(r"[+-]0\.0000 \[-0\.\d{4},\+0\.\d{4}\]", lpips)


def test_single_weights_have_no_table_of_differences():
    assert [table.title for table in score_tables([result("a", [30], [0.1])], METRICS)] == ["scores"]


def test_image_that_was_not_upscaled_counts_as_unscored():
    broken = BenchmarkScores({"0": {"psnr": 30.0}}, failures=("1 could not be upscaled",), not_upscaled=1)
    other = Result("b", "b.pth", 4, "RRDB, x4", None, {"Set5": broken})
    scores, differences = score_tables([result("a", [32, 31], [0.1, 0.2]), other], METRICS)
    assert list(scores.sections) == ["Set5 (2 images)"]
    assert texts(rows_of(scores)["b"]) == ["30.00 (1/2)", "-"]
    assert texts(rows_of(differences)["b"]) == ["-2.00 (1/2)", "-"]


def test_folder_without_ground_truth_has_the_scores_of_no_reference_metrics():
    niqe = metric("niqe", "NIQE", lower_is_better=True, needs_ground_truth=False)
    photos = BenchmarkScores({"x": {"niqe": 4.5}, "y": {"niqe": 5.5}})
    nothing = BenchmarkScores({"x": {}})
    results = [result("a", [30], [0.1], photos=photos, nothing=nothing)]
    (table,) = score_tables(results, {**METRICS, "niqe": niqe})
    assert list(table.sections) == ["Set5 (1 image)", "photos (2 images)"]
    assert texts(table.sections["photos (2 images)"][0]) == ["-", "-", "5.0000 ±0.5000"]


def test_there_is_no_table_without_scores():
    results = [Result("a", "a.pth", 4, "RRDB, x4", None, {"photos": BenchmarkScores({"x": {}})})]
    assert score_tables(results, METRICS) == []


def test_each_scale_has_its_own_tables_and_baseline():
    x2 = [replace(result(label, [31, 33], [0.1, 0.2], benchmark="Set5_x2"), scale=2) for label in ("a", "b")]
    x4 = [result(label, [30, 32], [0.1, 0.2], benchmark="Set5_x4", row="RRDB+P+SeD") for label in ("c", "d")]
    tables = score_tables([x4[0], *x2, x4[1]], METRICS)
    titles = ["scores, x2", "differences to a, x2", "scores, x4", "differences to c, x4"]
    assert [table.title for table in tables] == titles
    assert [list(rows_of(table)) for table in tables] == [["a", "b"], ["b"], ["c", "paper: RRDB+P+SeD", "d"], ["d"]]
