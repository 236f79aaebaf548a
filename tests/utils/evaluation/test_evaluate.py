"""Evaluation: the protocol, overlap of reading, upscaling and scoring, ranks, and failures."""

import math
import signal
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import sed_sr.data.benchmarks
import sed_sr.utils.evaluation.evaluate
from sed_sr.data.benchmarks import Benchmark, BenchmarkImage, find_benchmark, find_inputs
from sed_sr.data.images import Cancelled, read_rgb
from sed_sr.data.tensors import to_tensor
from sed_sr.models.generator import Generator
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.evaluate import check_best_by, evaluate
from sed_sr.utils.evaluation.metrics import FORMULAS, Metric, psnr_y, ssim_y
from sed_sr.utils.evaluation.upscaler import Upscaler, bicubic
from sed_sr.utils.runtime.distributed import World

CPU = torch.device("cpu")
PSNR, SSIM = FORMULAS["psnr"], FORMULAS["ssim"]
BRIGHTNESS = Metric("brightness", "Brightness", lambda sr, hr: sr.float().mean().item(), needs_ground_truth=False)


def evaluate_all(benchmark, upscale=bicubic(4), metrics=(PSNR,), **arguments):  # noqa: B008
    by_name = {metric.name: metric for metric in metrics}
    return evaluate(upscale, benchmark, metrics=by_name, **{"scale": 4, "device": CPU, "world": World(), **arguments})


def without_ground_truth(benchmark):
    return Benchmark(benchmark.name, tuple(replace(image, hr=None) for image in benchmark.images))


@pytest.fixture
def benchmark(tmp_path):
    """A benchmark whose HR sides are no multiples of 4, as in Set14."""
    rng = np.random.default_rng(0)
    for folder, height, width in (("HR", 50, 63), ("LR_bicubic/X4", 12, 15)):
        (tmp_path / "Set" / folder).mkdir(parents=True)
        for name in "abcde":
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            suffix = "x4" if "X4" in folder else ""
            Image.fromarray(pixels).save(tmp_path / "Set" / folder / f"{name}{suffix}.png")
    return find_benchmark(tmp_path, "Set", scale=4)


@pytest.fixture
def photographs(tmp_path):
    """A benchmark of three images, of which the second is the largest: 130x200 px of LR."""
    rng = np.random.default_rng(0)
    for name, height, width in (("a", 40, 60), ("b", 130, 200), ("c", 40, 70)):
        lr = rng.integers(0, 256, (height, width, 3), np.uint8)
        for folder, image in (("LRbicx4", lr), ("GTmod12", lr.repeat(4, axis=0).repeat(4, axis=1) // 2)):
            (tmp_path / "Photos" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "Photos" / folder / f"{name}.png")
    return find_benchmark(tmp_path, "Photos", scale=4)


class Nearest(Generator):
    """A generator that runs out of memory beyond `most_px` LR pixels."""

    scale = 4

    def __init__(self, most_px):
        super().__init__()
        self.most_px = most_px

    def forward(self, lr):
        if lr[:, 0].numel() > self.most_px:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return lr.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)


def test_scores_are_the_metrics_of_the_written_images_on_the_shared_area(benchmark, tmp_path):
    scores = evaluate_all(benchmark, metrics=(PSNR, SSIM), output=tmp_path)
    assert list(scores.images) == ["a", "b", "c", "d", "e"]
    for image in benchmark.images:
        sr, hr = (to_tensor(read_rgb(path)) for path in (tmp_path / f"{image.name}.png", image.hr))
        assert scores.images[image.name] == {"psnr": psnr_y(sr, hr[:, :48, :60]), "ssim": ssim_y(sr, hr[:, :48, :60])}
    assert scores.mean["psnr"] == pytest.approx(np.mean([row["psnr"] for row in scores.images.values()]))


def test_sr_that_is_larger_than_the_ground_truth_is_scored_on_the_shared_area(tmp_path):
    """For instance if LR sides were rounded up."""
    rng = np.random.default_rng(0)
    lr, hr = (rng.integers(0, 256, (*size, 3), np.uint8) for size in ((13, 16), (49, 63)))
    for name, pixels in (("Canon_001_LR4", lr), ("Canon_001_HR", hr)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    scores = evaluate_all(find_benchmark(tmp_path, ".", scale=4), metrics=(PSNR, SSIM))
    sr = to_tensor(bicubic(4)([lr], print)[0][:49, :63])
    assert scores.images == {"Canon_001": {"psnr": psnr_y(sr, to_tensor(hr)), "ssim": ssim_y(sr, to_tensor(hr))}}


@pytest.mark.parametrize("scale", [1, 2, 3, 8])
def test_a_border_as_wide_as_the_scale_is_not_scored(scale, tmp_path):
    rng = np.random.default_rng(0)
    lr = rng.integers(0, 256, (24, 30, 3), np.uint8)
    hr = bicubic(scale)([lr], print)[0] // 2
    for name, pixels in (("a_LR", lr), ("a_HR", hr)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    upscaled = []
    scores = evaluate_all(
        Benchmark("Set", (BenchmarkImage("a", tmp_path / "a_LR.png", tmp_path / "a_HR.png"),)),
        bicubic(scale),
        metrics=(PSNR, SSIM),
        scale=scale,
        on_image=lambda image, sr: upscaled.append(to_tensor(sr)),
    )
    inside = (slice(None), slice(scale, -scale), slice(scale, -scale))
    pair = upscaled[0][inside], to_tensor(hr)[inside]
    expected = {"psnr": psnr_y(*pair, crop_border_px=0), "ssim": ssim_y(*pair, crop_border_px=0)}
    assert scores.images == {"a": expected}


def test_image_without_ground_truth_has_the_scores_that_need_none(benchmark, tmp_path):
    scores = evaluate_all(without_ground_truth(benchmark), metrics=(PSNR, BRIGHTNESS), output=tmp_path)
    for name, row in scores.images.items():
        assert row == {"brightness": pytest.approx(read_rgb(tmp_path / f"{name}.png").mean(), abs=1e-3)}
    assert set(evaluate_all(benchmark, metrics=(PSNR, BRIGHTNESS)).images["a"]) == {"psnr", "brightness"}


def test_batches_contain_images_of_one_size_and_do_not_change_scores(benchmark, photographs):
    joined = Benchmark("Both", (*benchmark.images, *photographs.images))
    sizes = []

    def upscale(images, note):
        sizes.append([image.shape[:2] for image in images])
        return bicubic(4)(images, note)

    shown = []
    batched = evaluate_all(joined, upscale, batch_size=3, on_image=lambda image, sr: shown.append(image))
    assert sizes == [[(12, 15)] * 3, [(12, 15)] * 2, [(40, 60)], [(130, 200)], [(40, 70)]]
    assert shown == list(joined.images)
    assert batched == evaluate_all(joined)


def test_images_are_distributed_over_ranks_and_every_rank_has_all_scores(benchmark):
    """Two ranks run one after the other; an image of the second one fails."""

    class Rank(World):
        def gather(self, value):
            shares[self.rank] = value
            return [shares[rank] for rank in sorted(shares)] if isinstance(value, tuple) else [value]

        def any(self, here):
            return here

    shares = {}
    shown = []
    benchmark.images[1].lr.write_bytes(b"cut off")
    for rank in range(2):
        scores = evaluate_all(benchmark, world=Rank(rank, 2), on_image=lambda image, sr: shown.append(image.name))
    assert shown == ["a", "c", "e", "d"]
    assert (scores.counts, scores.total, len(scores.failures)) == ({"psnr": 4}, 5, 1)
    assert scores == evaluate_all(benchmark)


def test_next_image_is_read_and_previous_one_written_during_upscaling(benchmark, tmp_path, monkeypatch):
    """Upscaling an image waits until the next one is read and the previous one is being written; no others are."""
    read, writing = [], []
    moved = threading.Condition()

    def note(events, path):
        with moved:
            events.append(path.stem[0])
            moved.notify_all()

    original_read = sed_sr.data.benchmarks.read_rgb
    original_write = sed_sr.utils.evaluation.evaluate.write_photograph
    monkeypatch.setattr(sed_sr.data.benchmarks, "read_rgb", lambda path: (note(read, path), original_read(path))[1])
    monkeypatch.setattr(
        sed_sr.utils.evaluation.evaluate,
        "write_photograph",
        lambda path, sr, **kwargs: (note(writing, path), original_write(path, sr))[1],
    )
    calls = 0

    def upscale(images, note):
        nonlocal calls
        calls += 1
        with moved:
            assert moved.wait_for(lambda: len(read) >= min(calls + 1, 5) and len(writing) >= calls - 1, timeout=20)
        time.sleep(0.05)  # time in which further images could be read
        assert len(read) <= calls + 1
        assert len(writing) <= calls - 1
        return bicubic(4)(images, note)

    evaluate_all(without_ground_truth(benchmark), upscale, output=tmp_path)
    assert "".join(read) == "".join(writing) == "abcde"


def test_images_of_8_and_16_bits_are_never_in_one_batch(tmp_path):
    """Each is written in its own depth; what the format cannot hold is said once."""
    deep = np.random.default_rng(0).integers(0, 65536, (12, 15, 3), np.uint16)
    for number, image in enumerate((deep, deep, (deep >> 8).astype(np.uint8), (deep >> 8).astype(np.uint8))):
        (tmp_path / "photos").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"photos/{number}.png"), image)
    types = []

    def upscale(images, note):
        types.append([image.dtype for image in images])
        return bicubic(4)(images, note)

    (photographs,) = find_inputs([tmp_path / "photos"])
    scores = evaluate_all(photographs, upscale, batch_size=3, metrics=(BRIGHTNESS,), output=tmp_path / "out")
    assert types == [[np.uint16] * 2, [np.uint8] * 2]
    written = [cv2.imread(str(tmp_path / f"out/{number}.png"), cv2.IMREAD_UNCHANGED) for number in range(4)]
    assert [image.dtype for image in written] == [np.uint16] * 2 + [np.uint8] * 2
    assert scores.images["0"]["brightness"] == pytest.approx(read_rgb(tmp_path / "out/0.png").mean(), abs=1e-3)
    assert scores.notes == ()
    (photographs,) = find_inputs([tmp_path / "photos"], ext="jpg", suffix="_x4")
    scores = evaluate_all(photographs, output=tmp_path / "jpg")
    assert sorted(path.name for path in (tmp_path / "jpg").iterdir()) == [f"{number}_x4.jpg" for number in range(4)]
    assert len(scores.notes) == 1
    assert "rounded to 8" in scores.notes[0]


def test_write_error_is_raised_before_the_image_after_the_next(benchmark, tmp_path):
    (tmp_path / "file").touch()
    calls = []

    def upscale(images, note):
        calls.append(images)
        return bicubic(4)(images, note)

    with pytest.raises(UserError, match=r"cannot write .*file/a\.png"):
        evaluate_all(benchmark, upscale, output=tmp_path / "file")
    assert len(calls) <= 2


def test_damaged_image_does_not_affect_other_scores(benchmark):
    """A damaged LR has no scores, a damaged HR only those without reference."""
    whole = evaluate_all(benchmark, metrics=(PSNR, BRIGHTNESS)).images
    benchmark.images[0].hr.write_bytes(b"cut off")
    benchmark.images[2].lr.write_bytes(b"cut off")
    scores = evaluate_all(benchmark, metrics=(PSNR, BRIGHTNESS))
    assert {name: set(row) for name, row in scores.images.items()} == {
        "a": {"brightness"},
        **{name: {"psnr", "brightness"} for name in "bde"},
    }
    assert scores.mean["psnr"] == pytest.approx(np.mean([whole[name]["psnr"] for name in "bde"]))
    assert (list(scores.mean), scores.counts) == (["psnr", "brightness"], {"psnr": 3, "brightness": 4})
    assert (scores.total, scores.complete_mean) == (5, {})
    of_a, of_c = scores.failures
    assert "HR/a.png has no psnr: cannot decode" in of_a
    assert "cx4.png" in of_c
    alone = evaluate_all(without_ground_truth(benchmark), metrics=(PSNR, BRIGHTNESS))
    assert (list(alone.images), alone.counts, alone.total) == (["a", "b", "d", "e"], {"brightness": 4}, 5)


def test_ctrl_c_cancels_writing_at_once_and_leaves_no_partial_file(benchmark, tmp_path, monkeypatch):
    original = sed_sr.utils.evaluation.evaluate.write_photograph
    started, outcome = threading.Event(), []

    def slowly(path, sr, *, cancelled):
        def waits_for_the_end():
            started.set()
            for _ in range(200):
                if cancelled():
                    return True
                time.sleep(0.1)
            return False

        try:
            original(path, sr, cancelled=waits_for_the_end)
        except Cancelled:
            outcome.append("cancelled")
            raise

    def upscale(images, note):
        if calls:
            assert started.wait(timeout=20)
            signal.raise_signal(signal.SIGINT)
        calls.append(images)
        return bicubic(4)(images, note)

    calls = []
    monkeypatch.setattr(sed_sr.utils.evaluation.evaluate, "write_photograph", slowly)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluate_all(benchmark, upscale, output=tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome == ["cancelled"]
    assert list((tmp_path / "out").iterdir()) == []


def test_stop_ends_the_evaluation_without_scores_and_with_whole_images(benchmark, tmp_path):
    answers = iter((False, False, True))
    assert evaluate_all(benchmark, output=tmp_path / "out", stop=lambda: next(answers)) is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert all(read_rgb(path).shape == (48, 60, 3) for path in (tmp_path / "out").iterdir())


def test_image_that_runs_out_of_memory_is_a_failure_and_the_others_are_scored(photographs, tmp_path):
    scores = evaluate_all(photographs, Upscaler(Nearest(most_px=40 * 70), CPU), output=tmp_path / "out")
    assert scores.images.keys() == {"a", "c"} == {path.stem for path in (tmp_path / "out").iterdir()}
    (failure,) = scores.failures
    assert "LRbicx4/b.png" in failure
    assert "out of memory" in failure
    assert scores.mean == {"psnr": pytest.approx((scores.images["a"]["psnr"] + scores.images["c"]["psnr"]) / 2)}
    assert (scores.counts, scores.total, scores.complete_mean) == ({"psnr": 2}, 3, {})


def test_metric_that_runs_out_of_memory_does_not_affect_other_scores(photographs, tmp_path):
    def hungry(sr, hr):
        if sr.numel() > 3 * 400 * 400:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 0.1

    scores = evaluate_all(photographs, metrics=(PSNR, Metric("lpips", "LPIPS", hungry)), output=tmp_path / "out")
    assert [set(row) for row in scores.images.values()] == [{"psnr", "lpips"}, {"psnr"}, {"psnr", "lpips"}]
    assert len(list((tmp_path / "out").iterdir())) == 3
    (failure,) = scores.failures
    assert "GTmod12/b.png has no lpips: out of memory" in failure
    assert (scores.counts, scores.notes) == ({"psnr": 3, "lpips": 2}, ())


@pytest.mark.parametrize("outcome", [UserError("an image of 800x520 px is too large"), math.nan])
def test_image_that_a_metric_cannot_score_is_a_failure_and_keeps_its_other_scores(photographs, outcome):
    def small_only(sr, hr):
        if sr.shape[1] > 160 and isinstance(outcome, UserError):
            raise outcome
        return outcome if sr.shape[1] > 160 else 1.0

    picky = Metric("picky", "Picky", small_only)
    scores = evaluate_all(photographs, metrics=(picky, PSNR))
    (failure,) = scores.failures
    reason = "the result is NaN" if outcome is math.nan else outcome
    assert f"GTmod12/b.png has no picky: {reason}" in failure
    assert {name: set(row) for name, row in scores.images.items()} == {
        "a": {"psnr", "picky"},
        "b": {"psnr"},
        "c": {"psnr", "picky"},
    }
    assert list(scores.mean) == ["picky", "psnr"]
    assert scores.mean["picky"] == 1
    assert scores.complete_mean == {"psnr": pytest.approx(np.mean([row["psnr"] for row in scores.images.values()]))}


def test_failures_are_in_the_order_of_the_images(photographs):
    """Even if they occur in another order: the first one fails in scoring, the second one in upscaling, before that."""

    def hungry(sr, hr):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    scores = evaluate_all(
        photographs, Upscaler(Nearest(most_px=40 * 70), CPU), metrics=(Metric("lpips", "LPIPS", hungry),)
    )
    assert [failure.split("/")[-1][0] for failure in scores.failures] == ["a", "b", "c"]


def test_best_by_needs_ground_truth_if_its_metric_does(benchmark):
    assert "psnr on Set" in check_best_by(PSNR, benchmark, scale=4)
    alone = without_ground_truth(benchmark)
    assert "brightness on Set" in check_best_by(BRIGHTNESS, alone, scale=4)
    with pytest.raises(
        UserError, match=r"best_by is psnr, which needs ground truth .*image a of benchmark Set \("
    ) as told:
        check_best_by(PSNR, alone, scale=4)
    assert "ax4.png, 60x48 px after upscaling) has none" in str(told.value)


def test_best_by_needs_images_that_are_large_enough_for_its_metric(photographs, tmp_path):
    """SR has 20 rows and HR 18, which are scored."""
    for folder, height, width in (("LRbicx4", 5, 300), ("GTmod12", 18, 1200)):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / "Photos" / folder / "d.png")
    small = find_benchmark(tmp_path, "Photos", scale=4)
    assert "1200x18 px" in check_best_by(PSNR, small, scale=4)
    assert check_best_by(SSIM, photographs, scale=4)
    with pytest.raises(UserError, match=r"best_by is ssim, which cannot score image d of benchmark Photos \(") as told:
        check_best_by(SSIM, small, scale=4)
    assert "GTmod12/d.png, 1200x18 px): " in str(told.value)
    assert "needs at least 19 px" in str(told.value)
