"""The report file: its data, and which pictures are embedded."""

import base64
import json
import math
import re
import tracemalloc
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sed_sr.data.benchmarks import Benchmark, BenchmarkImage
from sed_sr.data.images import read_rgb
from sed_sr.data.imresize import imresize
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.results import BenchmarkScores, Result
from sed_sr.utils.report import html_page
from sed_sr.utils.report.extra_pictures import NO_EXTRA_PICTURES, ExtraPictures
from sed_sr.utils.report.html_page import write_report

METRICS = {"psnr": Metric("psnr", "PSNR-Y", compute=None, decimals=2)}


class Evaluation:
    """A folder with LR, HR and SR images of noise, and made-up scores."""

    def __init__(self, root: Path):
        self.root = root
        self._rng = np.random.default_rng(0)
        self._benchmarks: dict[str, list[BenchmarkImage]] = {}
        self._scores: dict[str, dict[str, dict[str, dict[str, float]]]] = {}

    def add(
        self, benchmark: str, name: str, *, scores: dict[str, float | None], lr_px: int = 12, hr: str | None = "HR.png"
    ) -> None:
        """Add an image with SR of each of the weights in `scores`; None: no score."""
        lr = self._image(self.root / benchmark / f"{name}_LR.png", lr_px)
        # slightly larger than SR, like HR images whose sides are no multiples of the scale
        hr = None if hr is None else self._image(self.root / benchmark / f"{name}_{hr}", 4 * lr_px + 3)
        self._benchmarks.setdefault(benchmark, []).append(BenchmarkImage(name, lr, hr))
        for label, score in scores.items():
            self._image(self.root / "out" / label / benchmark / f"{name}.png", 4 * lr_px)
            row = {} if score is None else {"psnr": score}
            self._scores.setdefault(label, {}).setdefault(benchmark, {})[name] = row

    def _image(self, path: Path, side_px: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self._rng.integers(0, 256, (side_px, side_px, 3), np.uint8)).save(path)
        return path

    def write(self, extras: ExtraPictures = NO_EXTRA_PICTURES) -> None:
        results = [
            Result(
                label,
                source="bicubic" if label == "bicubic" else f"{label}.pth",
                scale=4,
                about="",
                paper_row=None,
                benchmarks={name: BenchmarkScores(images.get(name, {})) for name in self._benchmarks},
            )
            for label, images in self._scores.items()
        ]
        benchmarks = [Benchmark(name, tuple(images)) for name, images in self._benchmarks.items()]
        out = self.root / "out"
        write_report(
            out / "html_page.html",
            results,
            benchmarks=benchmarks,
            metrics=METRICS,
            sr_root=out,
            title="Evaluation",
            extra_pictures=extras,
        )

    def written(self, extras: ExtraPictures = NO_EXTRA_PICTURES) -> dict:
        """Write the report; returns its data."""
        self.write(extras)
        (block,) = re.findall(r'id="report">(.*)</script>', self.html)
        return json.loads(block, parse_constant=pytest.fail)  # Infinity and NaN are not valid JSON

    @property
    def html(self) -> str:
        return (self.root / "out" / "html_page.html").read_text()

    @property
    def pictures(self) -> dict[int, bytes]:
        blocks = re.findall(r'id="picture-(\d+)">([^<]*)<', self.html)
        return {int(number): base64.b64decode(block, validate=True) for number, block in blocks}


def pixels(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


@pytest.fixture
def evaluation(tmp_path):
    return Evaluation(tmp_path)


def test_pictures_are_lr_bicubic_sr_and_hr(evaluation):
    evaluation.add("Set", "a", scores={"one": 20, "two": 30}, hr="HR.tif")
    page = evaluation.written()
    assert page["versions"] == ["LR", "bicubic", "one", "two", "HR"]
    assert [page["versions"][weights["version"]] for weights in page["weights"]] == ["one", "two"]
    (image,) = page["benchmarks"][0]["images"]
    lr, bicubic, one, two, hr = (evaluation.pictures[number] for number in image["pictures"]["numbers"])
    lr_pixels = read_rgb(evaluation.root / "Set" / "a_LR.png")
    assert np.array_equal(pixels(lr), lr_pixels)
    assert np.array_equal(pixels(bicubic), imresize(lr_pixels, scale=4))
    assert one == (evaluation.root / "out/one/Set/a.png").read_bytes()
    assert two == (evaluation.root / "out/two/Set/a.png").read_bytes()
    assert np.array_equal(pixels(hr), read_rgb(evaluation.root / "Set/a_HR.tif")[:48, :48])
    assert image["pictures"]["size"] == [48, 48]
    assert image["pictures"]["scale"] == 4


def test_images_of_other_depths_and_modes_are_converted_to_rgb(evaluation, tmp_path):
    evaluation.add("Set", "a", scores={"one": 20})
    deep = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28
    Image.fromarray(deep).save(tmp_path / "Set" / "a_HR.png")  # grey, 16 bits
    (image,) = evaluation.written()["benchmarks"][0]["images"]
    hr = pixels(evaluation.pictures[image["pictures"]["numbers"][-1]])
    assert np.array_equal(hr[:, :, 1], np.rint(deep / 257))


def test_bicubic_is_not_added_if_it_is_one_of_the_weights(evaluation):
    evaluation.add("Set", "a", scores={"bicubic": 20, "one": 30})
    page = evaluation.written()
    assert page["versions"] == ["LR", "bicubic", "one", "HR"]
    assert [page["versions"][reference] for reference in page["references"]] == ["HR", "bicubic"]
    assert page["ranked_by"] == 1


def test_infinite_scores_are_strings_that_javascript_parses(evaluation):
    for name, score in {"a": math.inf, "b": math.nan, "c": 30.5}.items():
        evaluation.add("Set", name, scores={"one": score})
    images = evaluation.written()["benchmarks"][0]["images"]
    assert [image["scores"][0]["psnr"] for image in images] == ["Infinity", "NaN", 30.5]


def test_image_is_listed_if_at_least_one_of_the_weights_upscaled_it(evaluation):
    evaluation.add("Set", "all", scores={"one": 20, "two": 30})
    evaluation.add("Set", "none", scores={})
    evaluation.add("Set", "some", scores={"two": 30})
    whole, part = evaluation.written()["benchmarks"][0]["images"]
    assert (whole["name"], part["name"]) == ("all", "some")
    assert None not in whole["pictures"]["numbers"]
    assert [number is None for number in part["pictures"]["numbers"]] == [False, False, True, False, False]
    assert part["scores"] == [{}, {"psnr": 30}]


def test_folder_without_ground_truth_has_neither_hr_nor_tables(evaluation):
    evaluation.add("photos", "a", scores={"one": None}, hr=None)
    page = evaluation.written()
    assert page["versions"] == ["LR", "bicubic", "one"]
    assert [page["versions"][reference] for reference in page["references"]] == ["bicubic"]
    assert page["benchmarks"][0]["tables"] == []


def test_extra_pictures_are_drawn_from_hr_and_sr_and_follow_them(evaluation):
    evaluation.add("Set", "a", scores={"one": 20, "two": 30})
    evaluation.add("Set", "b", scores={"two": 30})
    evaluation.add("photos", "c", scores={"one": None}, hr=None)

    def draw(hr, sr):
        assert hr.shape == (48, 48, 3)
        return [255 - hr, *(None if image is None else 255 - image for image in sr)]

    page = evaluation.written(ExtraPictures(("not HR", "not one", "not two"), "They are negatives.", draw))
    assert page["note"] == "They are negatives."
    assert page["versions"][page["compared"] - 1 :] == ["HR", "not HR", "not one", "not two"]
    assert [page["versions"][reference] for reference in page["references"]] == ["HR", "bicubic"]
    images = {image["name"]: image for benchmark in page["benchmarks"] for image in benchmark["images"]}
    for name in ("a", "b"):
        numbers = dict(zip(page["versions"], images[name]["pictures"]["numbers"], strict=True))
        for version in ("HR", "one", "two"):
            if numbers[version] is None:
                assert numbers[f"not {version}"] is None
            else:
                picture, negative = (pixels(evaluation.pictures[numbers[each]]) for each in (version, f"not {version}"))
                assert np.array_equal(picture, 255 - negative)
    assert images["b"]["pictures"]["numbers"][2] is None
    assert images["c"]["pictures"]["numbers"][-3:] == [None] * 3


def test_extra_pictures_count_towards_the_limit_and_are_not_drawn_beyond_it(evaluation, monkeypatch):
    drawn = []

    def draw(hr, sr):
        drawn.append(hr)
        return [hr]

    for number in range(6):
        evaluation.add("Set", f"{number}", scores={"one": number})
    evaluation.written()
    plain_bytes = sum(map(len, evaluation.pictures.values()))
    monkeypatch.setattr(html_page, "MAX_PICTURE_BYTES", plain_bytes // 2)
    page = evaluation.written(ExtraPictures(("again",), "", draw))
    shown = [image for image in page["benchmarks"][0]["images"] if image["pictures"]]
    assert 0 < len(shown) < 3
    assert len(drawn) == len(shown) + 1  # the image that did not fit
    assert sum(map(len, evaluation.pictures.values())) <= plain_bytes // 2


def test_there_are_no_extra_pictures_without_ground_truth(evaluation):
    evaluation.add("photos", "a", scores={"one": None}, hr=None)
    page = evaluation.written(
        ExtraPictures(("attention",), "What D sees.", lambda hr, sr: pytest.fail("nothing to draw"))
    )
    assert (page["versions"], page["note"]) == (["LR", "bicubic", "one"], "")


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_worst_images_of_each_benchmark_are_embedded_up_to_the_limit(evaluation, monkeypatch, lower_is_better):
    monkeypatch.setitem(METRICS, "psnr", replace(METRICS["psnr"], lower_is_better=lower_is_better))
    scores = {"a": 24, "b": 21, "c": 25, "d": 22, "e": 23, "f": 20}
    for benchmark in ("Small", "Large"):
        for name, score in scores.items():
            evaluation.add(benchmark, name, scores={"bicubic": 60 - score, "one": score})
    page = evaluation.written()
    assert all(image["pictures"] for benchmark in page["benchmarks"] for image in benchmark["images"])
    limit_bytes = sum(map(len, evaluation.pictures.values())) // 2
    monkeypatch.setattr(html_page, "MAX_PICTURE_BYTES", limit_bytes)
    page = evaluation.written()
    for benchmark in page["benchmarks"]:
        shown = {image["name"] for image in benchmark["images"] if image["pictures"]}
        assert len(shown) in (2, 3)
        assert shown == set(sorted(scores, key=scores.get, reverse=lower_is_better)[: len(shown)])
        for image in benchmark["images"]:
            assert image["scores"][1]["psnr"] == scores[image["name"]]
            path = f"{benchmark['name']}/{image['name']}.png"
            assert image["files"] == [f"bicubic/{path}", f"one/{path}"]
    assert sum(map(len, evaluation.pictures.values())) <= limit_bytes


def test_huge_image_is_not_embedded(evaluation, monkeypatch):
    evaluation.add("Set", "huge", scores={"one": 20}, lr_px=26)
    evaluation.add("Set", "small", scores={"one": 30}, lr_px=25)
    monkeypatch.setattr(html_page, "MAX_PX", 100 * 100)
    images = evaluation.written()["benchmarks"][0]["images"]
    assert [image["pictures"] is None for image in images] == [True, False]


def test_report_is_never_in_memory_as_a_whole(evaluation):
    for number in range(30):
        evaluation.add("Set", f"{number}", scores={"one": number}, lr_px=48)
    evaluation.write()  # the first call imports modules, which do not count
    tracemalloc.start()
    evaluation.write()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < len(evaluation.html) / 2


def test_no_temporary_file_remains_and_a_failure_keeps_the_old_report(evaluation):
    evaluation.add("Set", "a", scores={"one": 20})
    evaluation.write()
    old = evaluation.html
    (evaluation.root / "Set" / "a_HR.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"a_HR\.png"):
        evaluation.write()
    assert evaluation.html == old
    assert {path.name for path in (evaluation.root / "out").iterdir()} == {"one", "html_page.html"}
