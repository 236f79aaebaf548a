import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest, chisquare, kstest, spearmanr

from sed_sr.data.degradation.draws import Stage, draw_end, draw_kernel, draw_stage
from sed_sr.data.degradation.jpeg import jpeg
from sed_sr.data.degradation.kernels import blur, gaussian_kernel, stack_kernels
from sed_sr.data.degradation.pipeline import Degradation

FIRST = Stage(
    blur_probability=1.0,
    kernel_px=(7, 21),
    kernel_kinds={
        "iso": 0.45,
        "aniso": 0.25,
        "generalized_iso": 0.12,
        "generalized_aniso": 0.03,
        "plateau_iso": 0.12,
        "plateau_aniso": 0.03,
    },
    sinc_probability=0.1,
    sigma_px=(0.2, 3.0),
    beta_generalized=(0.5, 4.0),
    beta_plateau=(1.0, 2.0),
    resize={"up": 0.2, "down": 0.7, "keep": 0.1},
    resize_range=(0.15, 1.5),
    gaussian_noise_probability=0.5,
    gaussian_noise_sigma=(1.0, 30.0),
    poisson_noise_scale=(0.05, 3.0),
    grey_noise_probability=0.4,
    jpeg_quality=(30.0, 95.0),
)
SECOND = dataclasses.replace(
    FIRST,
    blur_probability=0.8,
    sigma_px=(0.2, 1.5),
    resize={"up": 0.3, "down": 0.4, "keep": 0.3},
    resize_range=(0.3, 1.2),
    gaussian_noise_sigma=(1.0, 25.0),
    poisson_noise_scale=(0.05, 2.5),
)
# A stage that leaves an image of middle brightness nearly as it is, for tests of one operation.
STILL = dataclasses.replace(
    FIRST,
    blur_probability=0.0,
    resize={"up": 0.0, "down": 0.0, "keep": 1.0},
    gaussian_noise_probability=1.0,
    gaussian_noise_sigma=(0.0, 0.0),
    jpeg_quality=(100.0, 100.0),
)
PUBLISHED = Degradation(first=FIRST, second=SECOND, final_sinc_probability=0.8)


def generator(seed=0):
    return np.random.default_rng(seed)


def photograph(batch, height, width, seed=0):
    """(B, 3, H, W) in [0, 1], smooth and coloured."""
    coarse = torch.rand(batch, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bilinear")


def steps(degradation, hr, seed=0):
    """The images after each operation, by the beginning of its title, and before all of them."""
    traced = {"HR": hr}

    def keep(title, images):
        assert images.isfinite().all()
        traced[title.split(" (")[0]] = images

    degradation(hr, rng=generator(seed), trace=keep)
    return traced


def assert_probabilities(found, probabilities):
    """The counts of `found` are of these probabilities."""
    counts = Counter(found)
    assert counts.keys() == probabilities.keys()
    expected = [len(found) * probability for probability in probabilities.values()]
    assert chisquare([counts[name] for name in probabilities], expected).pvalue > 1e-3


def assert_uniform(values, low, high):
    assert len(values) > 100
    assert low <= min(values)
    assert max(values) <= high
    assert kstest(values, "uniform", args=(low, high - low)).pvalue > 1e-3


def assert_share(hits, probability):
    hits = list(hits)
    assert binomtest(int(sum(hits)), len(hits), probability).pvalue > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn


@pytest.fixture(scope="module", params=[FIRST, SECOND], ids=["first", "second"])
def kernels(request):
    rng = generator()
    return request.param, [draw_kernel(request.param, rng) for _ in range(15000)]


@pytest.fixture(scope="module", params=[FIRST, SECOND], ids=["first", "second"])
def draws(request):
    rng = generator()
    return request.param, [draw_stage(request.param, rng, batch=3) for _ in range(4000)]


def test_kinds_of_kernels_follow_their_probabilities(kernels):
    stage, drawn = kernels
    blurring = [kernel.kind for kernel in drawn if kernel.kind != "identity"]
    assert_share((kernel.kind != "identity" for kernel in drawn), stage.blur_probability)
    assert_share((kind == "sinc" for kind in blurring), stage.sinc_probability)
    assert_probabilities([kind for kind in blurring if kind != "sinc"], stage.kernel_kinds)


def test_sides_of_kernels_are_odd_and_equally_likely(kernels):
    _, drawn = kernels
    for is_sinc in (True, False):
        blurring = [kernel for kernel in drawn if kernel.kind != "identity"]
        sides = [kernel.arguments["size_px"] for kernel in blurring if (kernel.kind == "sinc") == is_sinc]
        assert_probabilities(sides, dict.fromkeys((7, 9, 11, 13, 15, 17, 19, 21), 1 / 8))


def test_sinc_cutoffs_of_a_stage_are_uniform_and_lower_for_kernels_from_13_px(kernels):
    _, drawn = kernels
    sincs = [kernel.arguments for kernel in drawn if kernel.kind == "sinc"]
    for sides, lowest in (((7, 9, 11), math.pi / 3), ((13,), math.pi / 5), ((15, 17, 19, 21), math.pi / 5)):
        assert_uniform([sinc["cutoff"] for sinc in sincs if sinc["size_px"] in sides], lowest, math.pi)


@pytest.mark.parametrize("form", ["", "generalized_", "plateau_"])
def test_sigmas_and_angles_are_uniform_and_independent(kernels, form):
    stage, drawn = kernels
    iso = [kernel.arguments for kernel in drawn if kernel.kind == f"{form}iso"]
    assert all(kernel["sigma_px"][0] == kernel["sigma_px"][1] for kernel in iso)
    assert_uniform([kernel["sigma_px"][0] for kernel in iso], *stage.sigma_px)
    aniso = [kernel.arguments for kernel in drawn if kernel.kind == f"{form}aniso"]
    first, second = np.array([kernel["sigma_px"] for kernel in aniso]).T
    angles = [kernel["angle"] for kernel in aniso]
    assert_uniform(first, *stage.sigma_px)
    assert_uniform(second, *stage.sigma_px)
    assert_uniform(angles, -math.pi, math.pi)
    assert spearmanr(first, second).pvalue > 1e-3
    assert spearmanr(first, angles).pvalue > 1e-3


def test_half_of_the_exponents_lie_below_1(kernels):
    _, drawn = kernels
    generalized = np.array([kernel.arguments["beta"] for kernel in drawn if kernel.kind.startswith("generalized")])
    assert_share(generalized < 1, 0.5)
    assert_uniform(generalized[generalized < 1], 0.5, 1)
    assert_uniform(generalized[generalized >= 1], 1, 4)
    plateau = np.array([kernel.arguments["beta"] for kernel in drawn if kernel.kind.startswith("plateau")])
    assert_share(plateau == 1, 0.5)
    assert_uniform(plateau[plateau != 1], 1, 2)


def test_weights_of_a_drawn_kernel_follow_its_kind_and_arguments():
    rng = generator()
    for _ in range(200):
        kernel = draw_kernel(FIRST, rng)
        weights = kernel.weights()
        assert weights.shape == (kernel.arguments["size_px"],) * 2
        assert weights.sum() == pytest.approx(1)
        if kernel.kind == "aniso":
            expected = gaussian_kernel(**kernel.arguments)
            np.testing.assert_array_equal(weights, expected)
        assert np.allclose(weights, np.rot90(weights)) or kernel.kind.endswith("aniso")


def test_resize_directions_follow_their_probabilities(draws):
    stage, drawn = draws
    factors = np.array([draw.resize_factor for draw in drawn])
    ways = {"down": factors < 1, "up": factors > 1, "keep": factors == 1}
    assert_probabilities([way for way, hits in ways.items() for _ in range(hits.sum())], stage.resize)
    assert_uniform(factors[ways["down"]], stage.resize_range[0], 1)
    assert_uniform(factors[ways["up"]], 1, stage.resize_range[1])


def test_interpolations_are_equally_likely(draws):
    _, drawn = draws
    thirds = dict.fromkeys(("area", "bilinear", "bicubic"), 1 / 3)
    assert_probabilities([draw.interpolation for draw in drawn], thirds)


def test_kinds_and_strengths_of_noise_follow_their_probabilities(draws):
    stage, drawn = draws
    assert_share((draw.noise == "Gaussian" for draw in drawn), stage.gaussian_noise_probability)
    for kind, ends in (("Gaussian", stage.gaussian_noise_sigma), ("Poisson", stage.poisson_noise_scale)):
        assert_uniform(np.concatenate([draw.noise_strength for draw in drawn if draw.noise == kind]), *ends)
    assert_share(np.concatenate([draw.grey for draw in drawn]), stage.grey_noise_probability)


def test_jpeg_qualities_are_uniform(draws):
    stage, drawn = draws
    assert_uniform(np.concatenate([draw.jpeg_quality for draw in drawn]), *stage.jpeg_quality)


def test_each_sample_of_a_batch_has_its_own_kernel_strength_and_quality(draws):
    _, drawn = draws
    sigmas = np.array([draw.noise_strength for draw in drawn if draw.noise == "Gaussian"])
    for values in (sigmas, np.array([draw.jpeg_quality for draw in drawn])):
        assert spearmanr(values[:, 0], values[:, 1]).pvalue > 1e-3
    grey = np.array([draw.grey for draw in drawn])
    assert_share(grey[:, 0] & grey[:, 1], 0.4**2)
    kinds = [[kernel.kind for kernel in draw.kernels] for draw in drawn]
    same = sum(p**2 for p in Counter(kind for batch in kinds for kind in batch).values()) / (3 * len(drawn)) ** 2
    assert_share((batch[0] == batch[2] for batch in kinds), same)


def test_the_end_is_drawn_as_published():
    rng = generator()
    drawn = [draw_end(SECOND, rng, sinc_probability=0.8, batch=2) for _ in range(3000)]
    kernels = [kernel for draw in drawn for kernel in draw.kernels]
    sincs = [kernel.arguments for kernel in kernels if kernel.kind == "sinc"]
    assert {kernel.kind for kernel in kernels} == {"sinc", "identity"}
    assert_share((kernel.kind == "sinc" for kernel in kernels), 0.8)
    for sides in ((7, 9, 11), (13, 15, 17, 19, 21)):
        assert_uniform([sinc["cutoff"] for sinc in sincs if sinc["size_px"] in sides], math.pi / 3, math.pi)
    assert_probabilities([sinc["size_px"] for sinc in sincs], dict.fromkeys(range(7, 22, 2), 1 / 8))
    assert_probabilities([draw.interpolation for draw in drawn], dict.fromkeys(("area", "bilinear", "bicubic"), 1 / 3))
    assert_share((draw.jpeg_last for draw in drawn), 0.5)


def test_probabilities_whose_sum_is_rounded_can_be_drawn_from():
    thirds = {"up": 0.333333, "down": 0.333333, "keep": 0.333333}
    factor = draw_stage(dataclasses.replace(FIRST, resize=thirds), generator(), batch=1).resize_factor
    assert 0.15 <= factor <= 1.5


# ---------------------------------------------------------------------------------------------------------------------
# What is done


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (100, 36), (128, 128)])
@pytest.mark.parametrize("seed", range(6))
def test_lr_has_its_size_and_lies_on_the_8_bit_grid(size, seed):
    lr = PUBLISHED(photograph(2, *size), rng=generator(seed))
    assert lr.shape == (2, 3, size[0] // 4, size[1] // 4)
    assert lr.dtype == torch.float32
    assert lr.min() >= 0
    assert lr.max() <= 1
    assert torch.equal((lr * 255).round() / 255, lr)


def test_the_smallest_images_survive_the_strongest_shrinking_and_the_widest_kernels():
    smallest = dataclasses.replace(
        FIRST, kernel_px=(21, 21), resize={"up": 0.0, "down": 1.0, "keep": 0.0}, resize_range=(0.01, 1.0)
    )
    degradation = Degradation(first=smallest, second=smallest, final_sinc_probability=1.0)
    for seed in range(10):
        assert degradation(photograph(2, 32, 36), rng=generator(seed)).isfinite().all()


def test_the_same_rng_gives_the_same_lr_whatever_came_before():
    hr = photograph(2, 64, 48)
    for seed in range(6):
        torch.manual_seed(seed)
        first = PUBLISHED(hr, rng=generator(seed))
        torch.manual_seed(seed + 100)
        PUBLISHED(photograph(1, 32, 32), rng=generator())
        assert torch.equal(PUBLISHED(hr, rng=generator(seed)), first)
        assert not torch.equal(PUBLISHED(hr, rng=generator(seed + 100)), first)


def test_hr_stays_as_it_was():
    hr = photograph(2, 48, 64)
    before = hr.clone()
    for seed in range(6):
        PUBLISHED(hr, rng=generator(seed))
    assert torch.equal(hr, before)


def test_images_of_a_batch_do_not_affect_each_other():
    # Shot noise is left out: on a CPU, how many numbers an image takes from the generator depends on its brightness.
    degradation = Degradation(
        first=dataclasses.replace(FIRST, gaussian_noise_probability=1.0),
        second=dataclasses.replace(SECOND, gaussian_noise_probability=1.0),
        final_sinc_probability=0.8,
    )
    hr = photograph(3, 64, 64)
    for seed in range(6):
        lr = degradation(hr, rng=generator(seed))
        for other in range(3):
            changed = hr.clone()
            changed[other] = photograph(1, 64, 64, seed=7)[0]
            changed_lr = degradation(changed, rng=generator(seed))
            alike = [torch.equal(a, b) for a, b in zip(lr, changed_lr, strict=True)]
            assert alike == [sample != other for sample in range(3)]


def test_lr_is_made_on_the_device_of_hr(fake_gpu):
    hr = torch.empty(2, 3, 64, 48, device=fake_gpu)
    for seed in range(6):
        assert PUBLISHED(hr, rng=generator(seed)).device == fake_gpu


def test_operations_come_in_the_published_order_with_jpeg_at_both_places_of_the_end():
    stages = [f"{stage} {what}" for stage in ("first", "second") for what in ("blur", "resize", "noise", "JPEG")]
    shrink = ["final resize", "final sinc"]
    jpeg_first, jpeg_last = [*stages, *shrink, "LR"], [*stages[:-1], *shrink, stages[-1], "LR"]
    orders = {tuple(steps(PUBLISHED, photograph(1, 32, 32), seed))[1:] for seed in range(20)}
    assert orders == {tuple(jpeg_first), tuple(jpeg_last)}


@pytest.mark.parametrize("factor", [0.5, 1.2])
def test_the_first_resize_is_relative_to_hr_and_the_second_to_lr(factor):
    stage = dataclasses.replace(FIRST, resize={"up": 1.0, "down": 0.0, "keep": 0.0}, resize_range=(factor, factor))
    if factor < 1:
        stage = dataclasses.replace(stage, resize={"up": 0.0, "down": 1.0, "keep": 0.0})
    for seed in range(10):
        traced = steps(Degradation(first=stage, second=stage, final_sinc_probability=0.8), photograph(1, 80, 40), seed)
        for name, side in (("first", 80), ("second", 20)):
            height, width = traced[f"{name} resize"].shape[-2:]
            low, high = sorted((side, side * factor))
            assert low - 0.5 <= height <= high + 0.5
            assert abs(height - 2 * width) <= 1


def test_without_any_degradation_hr_is_only_shrunk():
    hr = photograph(1, 64, 64).mean(1, keepdim=True).repeat(1, 3, 1, 1)  # grey: JPEG leaves out half of the colours
    still = Degradation(first=STILL, second=STILL, final_sinc_probability=0.0)
    found = Counter()
    for seed in range(30):
        lr = still(hr, rng=generator(seed))
        errors = {
            mode: (lr - F.interpolate(hr, (16, 16), mode=mode)).abs().max() for mode in ("area", "bilinear", "bicubic")
        }
        best = min(errors, key=errors.get)
        assert errors[best] < 3 / 255
        found[best] += 1
    assert len(found) > 1


def test_each_stage_blurs_and_compresses_by_its_own_options():
    def stage(sigma, quality):
        only = {**dict.fromkeys(FIRST.kernel_kinds, 0.0), "iso": 1.0}
        return dataclasses.replace(
            STILL,
            blur_probability=1.0,
            kernel_px=(21, 21),
            kernel_kinds=only,
            sinc_probability=0.0,
            sigma_px=(sigma, sigma),
            jpeg_quality=(quality, quality),
        )

    degradation = Degradation(first=stage(3.0, 30.0), second=stage(1.0, 90.0), final_sinc_probability=1.0)
    orders = set()
    for seed in range(8):
        traced = steps(degradation, photograph(2, 48, 64), seed)
        titles = list(traced)
        for name, sigma, quality in (("first", 3.0, 30.0), ("second", 1.0, 90.0)):
            kernels = torch.from_numpy(stack_kernels([gaussian_kernel(21, sigma_px=(sigma, sigma))] * 2))
            before = traced[titles[titles.index(f"{name} blur") - 1]]
            torch.testing.assert_close(traced[f"{name} blur"], blur(before, kernels))
            before = traced[titles[titles.index(f"{name} JPEG") - 1]]
            expected = jpeg(before.clamp(0, 1), torch.full((2,), quality))
            torch.testing.assert_close(traced[f"{name} JPEG"], expected)
        orders.add(titles.index("second JPEG"))
    assert len(orders) == 2  # the JPEG of the second stage was seen at both places


def test_each_stage_has_noise_of_its_own_strength():
    def stage(sigma, grey):
        return dataclasses.replace(STILL, gaussian_noise_sigma=(sigma, sigma), grey_noise_probability=grey)

    degradation = Degradation(first=stage(20.0, 0.0), second=stage(5.0, 1.0), final_sinc_probability=0.0)
    traced = steps(degradation, torch.full((2, 3, 200, 200), 0.5))
    first, second = (traced[f"{name} noise"] - traced[f"{name} resize"] for name in ("first", "second"))
    assert first.std() * 255 == pytest.approx(20, rel=0.03)
    assert second.std() * 255 == pytest.approx(5, rel=0.03)
    assert (first[:, 0] - first[:, 1]).std() * 255 == pytest.approx(20 * math.sqrt(2), rel=0.03)
    torch.testing.assert_close(second[:, 0], second[:, 1], atol=1e-6, rtol=0)


def test_noise_differs_between_rngs_and_images():
    stage = dataclasses.replace(STILL, gaussian_noise_sigma=(20.0, 20.0))
    noisy = Degradation(first=stage, second=stage, final_sinc_probability=0.0)
    fields = [steps(noisy, torch.full((2, 3, 64, 64), 0.5), seed)["first noise"] for seed in range(2)]
    correlations = np.corrcoef(torch.cat(fields)[:, 0].flatten(1).numpy())
    assert np.abs(correlations - np.eye(4)).max() < 0.1


def test_shot_noise_is_proportional_to_its_scale():
    def noise(scale):
        stage = dataclasses.replace(
            STILL, gaussian_noise_probability=0.0, poisson_noise_scale=(scale, scale), grey_noise_probability=0.0
        )
        hr = 0.3 + 0.4 * photograph(1, 100, 100)  # noise is not clipped
        traced = steps(Degradation(first=stage, second=STILL, final_sinc_probability=0.0), hr)
        return traced["first noise"] - traced["first resize"]

    torch.testing.assert_close(noise(0.4), 2 * noise(0.2), atol=1e-6, rtol=0)
    assert noise(0.2).std() > 0.001


def test_drawn_interpolation_is_used():
    hr = photograph(1, 64, 64) + 0.1 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    modes = set()
    for seed in range(12):
        traced = []
        PUBLISHED(hr, rng=generator(seed), trace=lambda *step, traced=traced: traced.append(step))
        for (_, before), (title, after) in itertools.pairwise(traced):
            if "resize" in title:
                mode = title.split("(")[1].rstrip(")").split(",")[0]
                torch.testing.assert_close(after, F.interpolate(before, after.shape[-2:], mode=mode))
                modes.add(mode)
    assert modes == {"area", "bilinear", "bicubic"}
