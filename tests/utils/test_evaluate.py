"""Evaluation: the protocol around the metrics, sharing, and LPIPS where its backbone is missing."""

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

    assert (by_network(Constant().train(), CPU)(np.zeros((2, 2, 3), np.uint8)) == 101).all()


def test_upscaling_by_a_network_is_four_times_as_large():
    lr = np.zeros((5, 7, 3), np.uint8)
    assert by_network(RRDBNet(features=4, blocks=1, growth=2), CPU)(lr).shape == (20, 28, 3)


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
