import math

import numpy as np
import pytest

from sed_sr.utils.report.statistics import compare, standard_error


def normal(seed, size, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1, size)


def test_standard_error_is_the_deviation_of_means_of_repeated_samples():
    samples = normal(0, (2000, 10))
    errors = [standard_error(sample) for sample in samples]
    assert np.mean(np.square(errors)) == pytest.approx(samples.mean(axis=1).var(), rel=0.1)
    assert standard_error([1.0, 3.0]) == 1.0


def test_interval_of_many_normal_differences_is_that_of_the_central_limit_theorem():
    differences = normal(1, 2000, mean=0.3)
    low, high = compare(np.zeros(2000), differences).interval
    error = differences.std() / math.sqrt(2000)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert (low + high) / 2 == pytest.approx(differences.mean(), abs=0.1 * error)


def test_interval_contains_the_true_difference_in_95_of_100_experiments():
    experiments = 400
    samples = normal(6, (experiments, 100), mean=0.1)
    intervals = [compare(np.zeros(100), sample).interval for sample in samples]
    hits = sum(low <= 0.1 <= high for low, high in intervals)
    deviation = math.sqrt(experiments * 0.95 * 0.05)
    assert abs(hits - 0.95 * experiments) < 3 * deviation


def test_pairing_finds_a_small_difference_between_images_of_very_different_difficulty():
    difficulty = 100 * normal(2, 20)
    other = difficulty + 0.1 + 0.01 * normal(3, 20)
    compared = compare(difficulty, other)
    assert compared.mean == pytest.approx(0.1, abs=0.01)
    assert compared.excludes_zero
    assert not compare(difficulty, difficulty + normal(3, 20) - normal(3, 20).mean()).excludes_zero


def test_comparison_is_deterministic_and_antisymmetric():
    a, b = normal(4, 30), normal(5, 30)
    assert compare(a, b) == compare(a, b)
    forth, back = compare(a, b), compare(b, a)
    assert forth.mean == -back.mean
    assert forth.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=0.1)


def test_single_image_has_a_difference_without_error():
    compared = compare([30.0], [30.5])
    assert (compared.images, compared.mean, compared.interval, compared.excludes_zero) == (1, 0.5, None, False)
    assert standard_error([30.0]) is None


@pytest.mark.parametrize(("step", "excludes"), [(0.5, True), (0.0, False)])
def test_equal_differences_have_an_empty_interval(step, excludes, recwarn):
    scores = [1.0, 2.0, 4.0, 8.0, 16.0]
    compared = compare(scores, [score + step for score in scores])
    assert (compared.mean, compared.interval, compared.excludes_zero) == (step, (step, step), excludes)
    assert not recwarn.list


def test_interval_needs_five_images():
    """Bootstrapping fewer is meaningless: for two images, the interval would consist of the two differences."""
    baseline, other = [1.0, 2.0, 3.0, 4.0, 5.0], [1.1, 2.3, 3.2, 4.4, 5.1]
    four, five = compare(baseline[:4], other[:4]), compare(baseline, other)
    assert (four.interval, four.excludes_zero) == (None, False)
    assert five.interval[0] < five.mean < five.interval[1]


def test_equal_infinite_scores_have_the_difference_0(recwarn):
    inf = math.inf
    assert compare([inf, 30.0, 31.0], [inf, 30.5, 31.5]).mean == pytest.approx(1 / 3)
    one_sided = compare([30.0] * 5, [inf, 30.5, 30.5, 30.6, 30.7])
    assert (one_sided.mean, one_sided.interval) == (inf, None)
    assert math.isnan(compare([30.0, inf], [inf, 30.5]).mean)
    assert standard_error([inf, 30.0]) is None
    assert not recwarn.list
