"""Evaluation: the protocol around the metrics, sharing, LPIPS where its backbone is missing, and too little memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.benchmarks import find_benchmark
from data.images import read_rgb
from models.rrdb import RRDBNet
from utils.distributed import World
from utils.errors import UserError
from utils.evaluate import BenchmarkScores, bicubic, build_metrics, by_network, evaluate
from utils.metrics import psnr_y, ssim_y
from utils.score_table import as_json, score_table

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def ignore(note):
    pass


@pytest.fixture
def benchmark(tmp_path):
    """HR sides that are no multiples of 4, as in Set14."""
    rng = np.random.default_rng(0)
    for folder, height, width in (("HR", 50, 63), ("LR_bicubic/X4", 12, 15)):
        (tmp_path / "Set" / folder).mkdir(parents=True)
        for name in "abc":
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            suffix = "x4" if "X4" in folder else ""
            Image.fromarray(pixels).save(tmp_path / "Set" / folder / f"{name}{suffix}.png")
    return find_benchmark(tmp_path, "Set", scale=4)


def test_scores_are_the_metrics_of_the_written_images_on_the_common_part(benchmark, tmp_path):
    scores = evaluate(
        bicubic(4), benchmark, metrics={"psnr": psnr_y, "ssim": ssim_y}, device=CPU, world=World(), output=tmp_path
    )
    assert list(scores.images) == ["a.png", "b.png", "c.png"]
    for image in benchmark.images:
        sr, hr = (torch.from_numpy(read_rgb(path).copy()) for path in (tmp_path / f"{image.name}.png", image.hr))
        sr, hr = sr.permute(2, 0, 1), hr[:48, :60].permute(2, 0, 1)
        assert scores.images[f"{image.name}.png"] == {"psnr": psnr_y(sr, hr), "ssim": ssim_y(sr, hr)}
    assert scores.mean["psnr"] == pytest.approx(np.mean([row["psnr"] for row in scores.images.values()]))


def test_network_is_run_in_evaluation_mode_and_rounded_to_the_nearest_level():
    class Constant(torch.nn.Module):
        def forward(self, lr):
            assert not self.training
            assert not torch.is_grad_enabled()
            return torch.full((1, 3, 8, 8), 100.6 / 255)

    assert (by_network(Constant().train(), CPU)(np.zeros((2, 2, 3), np.uint8), ignore) == 101).all()


def test_upscaling_by_a_network_is_four_times_as_large():
    lr = np.zeros((5, 7, 3), np.uint8)
    assert by_network(RRDBNet(features=4, blocks=1, growth=2), CPU)(lr, ignore).shape == (20, 28, 3)


def test_lpips_is_left_out_unless_it_was_asked_for_by_name(tmp_path):
    nowhere = tmp_path / "file"
    nowhere.touch()  # a file in the place of the folder: nothing can be downloaded to it
    assert set(build_metrics(None, pretrained_root=nowhere, device=CPU)) == {"psnr", "ssim"}
    assert set(build_metrics(("ssim",), pretrained_root=nowhere, device=CPU)) == {"ssim"}
    with pytest.raises(UserError, match="alexnet"):
        build_metrics(("psnr", "lpips"), pretrained_root=nowhere, device=CPU)


def test_damaged_backbone_of_lpips_is_told_and_not_left_out(tmp_path):
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"cut off")
    with pytest.raises(UserError, match="alexnet"):
        build_metrics(None, pretrained_root=tmp_path, device=CPU)


def test_table_has_the_papers_row_beside_the_scores():
    scores = {"Set5": BenchmarkScores({"a.png": {"psnr": 31.0, "ssim": 0.9}}), "Mine": BenchmarkScores({})}
    table = score_table(scores, "RRDB+P+SeD")
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["Set5"], ["1"], ["31.00"], ["31.22"], ["0.9000"], ["0.8670"]]


def test_infinite_score_is_null_in_json():
    assert as_json({"Set": BenchmarkScores({"a.png": {"psnr": float("inf")}})}) == {
        "Set": {"psnr": None, "images": {"a.png": {"psnr": None}}}
    }


class Nearest(torch.nn.Module):
    """A generator whose memory holds `most_px` LR pixels."""

    scale = 4

    def __init__(self, most_px):
        super().__init__()
        self.most_px, self.calls = most_px, []

    def forward(self, lr):
        height, width = lr.shape[-2:]
        self.calls.append((height, width))
        if height * width > self.most_px:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return lr.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)


@pytest.fixture
def photographs(tmp_path):
    """A benchmark of three images, the middle one of which is the largest: 130x200 px of LR."""
    rng = np.random.default_rng(0)
    for name, height, width in (("a", 40, 60), ("b", 130, 200), ("c", 40, 70)):
        lr = rng.integers(0, 256, (height, width, 3), np.uint8)
        for folder, image in (("LRbicx4", lr), ("GTmod12", lr.repeat(4, axis=0).repeat(4, axis=1) // 2)):
            (tmp_path / "Photos" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "Photos" / folder / f"{name}.png")
    return find_benchmark(tmp_path, "Photos", scale=4)


def test_image_that_memory_does_not_hold_is_upscaled_in_tiles_whose_size_is_remembered():
    lr = np.random.default_rng(0).integers(0, 256, (130, 200, 3), np.uint8)
    generator, notes = Nearest(most_px=64 * 64), []
    upscale = by_network(generator, CPU)
    for _ in range(2):
        assert (upscale(lr, notes.append) == lr.repeat(4, axis=0).repeat(4, axis=1)).all()
        assert max(generator.calls[-1]) <= 64
    refused = [size for size in generator.calls if size[0] * size[1] > generator.most_px]
    assert refused == [(130, 200), (104, 104)]
    assert notes == ["out of memory on cpu: upscaling goes on in tiles of 64 px"]


def test_image_that_fits_in_no_tile_is_a_failure_and_the_others_go_on(photographs, tmp_path):
    scores = evaluate(
        by_network(Nearest(most_px=40 * 70), CPU),
        photographs,
        metrics={"psnr": psnr_y},
        device=CPU,
        world=World(),
        output=tmp_path / "out",
    )
    assert scores.images.keys() == {"a.png", "c.png"} == {path.name for path in (tmp_path / "out").iterdir()}
    (failure,) = scores.failures
    assert "LRbicx4/b.png" in failure
    assert "out of memory" in failure
    assert scores.mean == {}


def test_metric_that_runs_out_of_memory_costs_its_score_alone(photographs, tmp_path):
    def hungry(sr, hr):
        if sr.numel() > 3 * 400 * 400:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 0.1

    scores = evaluate(
        by_network(Nearest(most_px=10**6), CPU),
        photographs,
        metrics={"psnr": psnr_y, "lpips": hungry},
        device=CPU,
        world=World(),
        output=tmp_path / "out",
    )
    assert [set(row) for row in scores.images.values()] == [{"psnr", "lpips"}, {"psnr"}, {"psnr", "lpips"}]
    assert len(list((tmp_path / "out").iterdir())) == 3
    (failure,) = scores.failures
    assert "GTmod12/b.png has no lpips: out of memory" in failure
    assert (scores.mean, scores.notes) == ({}, ())


def test_any_other_error_of_a_network_is_no_lack_of_memory():
    class Broken(torch.nn.Module):
        def forward(self, lr):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        by_network(Broken(), CPU)(np.zeros((100, 100, 3), np.uint8), ignore)


def test_a_process_that_really_runs_out_of_memory_makes_the_same_image():
    """The whole image takes some 120 MB for a single layer's features; 70 MiB are left to the process."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/scripts/out_of_memory.py", "70"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    note, difference = done.stdout.splitlines()
    assert "out of memory on cpu: upscaling goes on in tiles of" in note
    assert int(difference) <= 1
