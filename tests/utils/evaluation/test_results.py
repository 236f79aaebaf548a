"""Means of scores over images, some of which may lack a score."""

import math

from sed_sr.utils.evaluation.results import BenchmarkScores, Result, scored_benchmarks

SCORES = BenchmarkScores({"b": {"psnr": 30.0, "lpips": 0.2}, "a": {"psnr": 32.0}}, not_upscaled=0)


def test_mean_is_over_the_images_that_have_the_score():
    assert SCORES.counts == {"psnr": 2, "lpips": 1}
    assert SCORES.mean == {"psnr": 31.0, "lpips": 0.2}
    assert BenchmarkScores({"a": {"psnr": math.inf}, "b": {"psnr": 30.0}}).mean == {"psnr": math.inf}


def test_complete_mean_needs_the_scores_of_all_images():
    assert SCORES.complete_mean == {"psnr": 31.0}
    assert BenchmarkScores(SCORES.images, not_upscaled=1).complete_mean == {}


def test_image_scores_are_sorted_by_name():
    result = Result("x", "x.pth", 4, "RRDB", None, {"Set5": SCORES, "photos": BenchmarkScores({"c": {}})})
    assert list(result.image_scores("Set5", "psnr").items()) == [("a", 32.0), ("b", 30.0)]
    assert result.image_scores("Set5", "lpips") == {"b": 0.2}
    assert result.image_scores("Set14", "psnr") == {}
    assert scored_benchmarks([result]) == {"Set5": 2}
