"""The report in a real browser: clicks, drags and keys, and the pixels that they show.

In the pictures, red and green encode the position, four levels per pixel, and blue the version: 200 is HR.
"""

import io
import math
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

from sed_sr.data.benchmarks import Benchmark, BenchmarkImage
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.results import BenchmarkScores, Result
from sed_sr.utils.report import html_page
from sed_sr.utils.report.extra_pictures import ExtraPictures
from sed_sr.utils.report.html_page import write_report

SIDE_PX = 60  # of SR and HR
BLUE = {"one": 190, "two": 200, "HR": 200}  # two is HR
EVIL = "<img src=x onerror=alert(1)>"
TITLE = "Evaluation </script><script>alert(2)</script>"
METRICS = {
    "psnr": Metric("psnr", "PSNR-Y", compute=None, decimals=2),
    "lpips": Metric("lpips", "LPIPS", compute=None, lower_is_better=True),
}
SCORES = {  # PSNR and LPIPS of each image, of each of the weights
    "one": {"a": (30.0, 0.1), "b": (20.0, 0.3), "c": (25.0, 0.2), EVIL: (28.0, 0.4)},
    "two": {"a": (math.inf, 0.0), "b": (33.0, 0.2), "c": (32.0, 0.1), EVIL: (31.0, 0.3)},
}
PHOTO, LONG = "photo", 200 * "L"
HUNDRED = [f"{number:03d}" for number in range(100)]
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--force-color-profile=srgb")  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    with sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        except Error as error:
            pytest.fail(f"no browser; install chromium, or run `playwright install chromium` ({error.message})")
        yield opened
        opened.close()


def places(*, blue: int) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]
    return np.stack([4 * columns, 4 * rows, np.full_like(rows, blue)], axis=2).astype(np.uint8)


def save(path: Path, rgb: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A report of two weights on a benchmark, on a hundred images and on photos without ground truth."""
    root = tmp_path_factory.mktemp("evaluation")
    hr = save(root / "hr.png", places(blue=BLUE["HR"]))
    lr = save(root / "lr.png", places(blue=100)[2::4, 2::4])
    benchmarks = [
        Benchmark("Set", tuple(BenchmarkImage(name, lr, hr) for name in SCORES["one"])),
        Benchmark("Hundred", tuple(BenchmarkImage(name, lr, hr) for name in HUNDRED)),
        Benchmark("photos", tuple(BenchmarkImage(name, lr, None) for name in (PHOTO, LONG))),
    ]
    results = []
    for label, scores in SCORES.items():
        for benchmark in benchmarks:
            for image in benchmark.images:
                save(root / "out" / label / benchmark.name / f"{image.name}.png", places(blue=BLUE[label]))
        by_benchmark = {
            "Set": BenchmarkScores({name: {"psnr": psnr, "lpips": lpips} for name, (psnr, lpips) in scores.items()}),
            "Hundred": BenchmarkScores({name: {"psnr": 30 - int(name) / 10} for name in HUNDRED}),
            "photos": BenchmarkScores({PHOTO: {}, LONG: {}}, failures=("broken.jpg cannot be decoded",)),
        }
        results.append(Result(label, f"{label}.pth", 4, "RRDB x4", None, by_benchmark))
    path = root / "out" / "html_page.html"
    write_report(path, results, benchmarks=benchmarks, metrics=METRICS, sr_root=root / "out", title=TITLE)
    return path


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page in a window; checks after the test that there were no errors and no network requests."""
    complaints, requests, opened, contexts = [], [], [], []

    def open_(url: str, *, width: int = 1200, height: int = 800, **settings) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(8_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(("blob:", "data:")) or requests.append(request.url))
        page.add_init_script(
            "window.made = window.kept = 0; const [make, give] = [URL.createObjectURL, URL.revokeObjectURL];"
            "URL.createObjectURL = blob => { made++; kept++; return make.call(URL, blob); };"
            "URL.revokeObjectURL = url => { kept--; give.call(URL, url); };"
        )
        page.goto(url, wait_until="commit")
        expect(page.locator("h1")).to_have_text(TITLE)
        opened.append(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests == opened


@pytest.fixture
def page(open_page, written) -> Page:
    return open_page(written.as_uri())


def rows(page: Page, benchmark: int = 0) -> list[str]:
    return page.locator(f"#benchmark-{benchmark} tbody button").all_inner_texts()


def look_at(page: Page, name: str, benchmark: int = 0) -> None:
    page.locator(f"#benchmark-{benchmark} tbody").get_by_role("button", name=name, exact=True).click()
    expect(page.locator("#viewer-title")).to_contain_text(name)
    expect(page.locator(".layer").first).to_be_visible()


def choose(page: Page, left: str, right: str) -> None:
    page.get_by_label("Left").select_option(label=left)
    page.get_by_label("Right").select_option(label=right)
    expect(page.locator(".layer figcaption").first).to_contain_text(left.split()[1])
    expect(page.locator(".layer figcaption").last).to_contain_text(right.split()[1])


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
    expect(page.locator("#stage[aria-busy=false]")).to_be_visible()


def seen(page: Page) -> np.ndarray:
    """A screenshot: (H, W, 3) RGB levels."""
    with Image.open(io.BytesIO(page.screenshot())) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def middle(locator: Locator) -> tuple[int, int]:
    box = locator.bounding_box()
    return round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)


def middles(page: Page) -> np.ndarray:
    """The pixels in the center of every layer."""
    window = seen(page)
    return np.array([window[y, x] for x, y in map(middle, page.locator(".layer").all())])


def drag(page: Page, start: tuple[int, int], *, right: int, down: int = 0) -> None:
    x, y = start
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right // 2, y + down // 2)
    page.mouse.move(x + right, y + down)
    page.mouse.up()


def test_tables_show_means_and_worst_images_come_first(page):
    means = page.get_by_role("region", name="scores").first
    expect(means.get_by_role("row", name="one")).to_contain_text("25.75")
    expect(means.locator("strong")).to_have_count(2)
    assert rows(page) == ["b", "c", EVIL, "a"]
    expect(page.locator("#benchmark-0 tbody")).to_contain_text("∞")
    expect(page.locator("#benchmark-2")).to_contain_text("broken.jpg cannot be decoded")
    assert page.locator("#benchmark-2").get_by_role("table").count() == 1  # the names of its images


def test_images_can_be_sorted_by_every_column(page):
    def by(weights: str, metric: int, *, worst_first: bool) -> list[str]:
        falling = worst_first == (metric == 1)  # LPIPS: lower is better
        return sorted(SCORES[weights], key=lambda name: SCORES[weights][name][metric], reverse=falling)

    for weights in SCORES:
        for metric, title in enumerate(("PSNR-Y", "LPIPS")):
            header = page.locator("#benchmark-0").get_by_role("button", name=f"{title} of {weights}", exact=True)
            if (weights, metric) != ("one", 0):  # by which they are sorted already
                header.click()
            assert rows(page) == by(weights, metric, worst_first=True)
            sorted_column = page.locator("#benchmark-0 th[aria-sort]")
            expect(sorted_column).to_have_attribute("aria-sort", "ascending" if metric == 0 else "descending")
            sign = sorted_column.get_by_role("button").evaluate("made => getComputedStyle(made, '::after').content")
            assert ("▲" if metric == 0 else "▼") in sign
            header.click()
            assert rows(page) == by(weights, metric, worst_first=False)
            expect(sorted_column).to_have_attribute("aria-sort", "descending" if metric == 0 else "ascending")
    page.locator("#benchmark-0").get_by_role("button", name="Image", exact=True).click()
    assert rows(page) == [EVIL, "a", "b", "c"]


def test_names_are_shown_literally_and_not_executed(page):
    look_at(page, EVIL)
    expect(page.locator("#viewer-title")).to_have_text(f"{EVIL} Set")
    assert page.title() == TITLE
    assert page.locator("img[src=x]").count() == 0


def test_long_name_is_clamped_to_two_lines_with_a_tooltip(page):
    short, long = (page.get_by_role("button", name=name, exact=True) for name in (PHOTO, LONG))
    assert long.bounding_box()["height"] <= 1.3 * short.bounding_box()["height"]
    expect(long).to_have_attribute("title", LONG)


def test_table_that_is_wider_than_the_window_has_scroll_shadows(open_page, written):
    page = open_page(written.as_uri(), width=390, height=844)
    table = page.locator("#benchmark-0").get_by_role("region", name="scores")

    def edges() -> tuple[int, int]:
        """Brightness at the left and right end of the header, above its text."""
        with Image.open(io.BytesIO(table.screenshot())) as image:
            grey = np.asarray(image.convert("L")).astype(int)
        return grey[4, 0], grey[4, -1]

    left, right = edges()
    assert left - right > 20
    table.evaluate("made => made.scrollTo(made.scrollWidth, 0)")
    left, right = edges()
    assert right - left > 20


def test_scatter_plot_is_beside_the_scores_unless_they_are_too_wide(page):
    def boxes() -> Iterator[dict[str, float]]:
        return (page.locator(f"#benchmark-0 {of}").first.bounding_box() for of in (".means", ".scatter"))

    page.locator("#benchmark-0 .means p").first.evaluate("caption => caption.textContent = 'long '.repeat(100)")
    scores, figure = boxes()
    assert (figure["y"], figure["x"] > scores["x"] + scores["width"]) == (scores["y"], True)
    page.locator("#benchmark-0 .means td").first.evaluate("cell => cell.textContent = '9'.repeat(60)")
    scores, figure = boxes()
    assert (figure["x"], figure["y"] > scores["y"] + scores["height"]) == (scores["x"], True)
    assert scores["width"] == page.locator("#benchmark-0").bounding_box()["width"]


def test_hundred_images_are_listed_and_none_is_decoded_before_it_is_opened(page):
    assert rows(page, 1) == HUNDRED[::-1]
    assert page.evaluate("made") == 0
    assert page.locator("img:not(.thumbnail)").count() == 0
    look_at(page, "042", 1)
    assert page.evaluate("made") == 2  # bicubic and one


def test_wipe_shows_one_version_on_the_left_and_the_other_on_the_right(page):
    look_at(page, "a")
    choose(page, "3 one", "5 HR")
    handle, stage = page.get_by_role("slider", name="Wipe"), page.locator("#stage").bounding_box()
    world = page.locator(".world").first.bounding_box()
    first, last = round(world["x"]) + 1, round(world["x"] + world["width"]) - 1
    for share in (0.5, 0.3, 0.7):
        cut = round(stage["x"] + share * stage["width"])
        drag(page, middle(handle), right=cut - middle(handle)[0])
        blue = seen(page)[middle(handle)[1] + 30, :, 2]  # below the knob
        assert set(blue[first : cut - 3]) == {BLUE["one"]}
        assert set(blue[cut + 3 : last]) == {BLUE["HR"]}


def test_focused_wipe_is_moved_by_the_arrow_keys(page):
    look_at(page, "a")
    handle = page.get_by_role("slider", name="Wipe")
    handle.focus()
    press(page, "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft")
    expect(handle).to_have_attribute("aria-valuenow", "54")
    expect(page.locator("#viewer-title")).to_contain_text("a Set")


def test_all_panes_show_the_same_area_after_zoom_and_pan(page):
    look_at(page, "a")
    press(page, "g")
    captions = page.locator(".layer figcaption").all_inner_texts()
    assert [caption.split(" ")[0] for caption in captions] == ["LR", "bicubic", "one", "two", "HR"]
    before = middles(page)[-1]
    box = page.locator(".layer").nth(2).bounding_box()
    corner = (round(box["x"] + box["width"] / 4), round(box["y"] + box["height"] / 4))
    under_pointer = seen(page)[corner[1], corner[0]]
    page.mouse.move(*corner)
    page.mouse.wheel(0, -600)  # four times
    expect(page.locator("#zoom")).to_have_text("2000 %")
    assert np.abs(seen(page)[corner[1], corner[0]] - under_pointer).max() <= 4  # it stays there, to a pixel of SR
    drag(page, corner, right=-80, down=40)  # four pixels of SR to the left, two down
    pixels = middles(page)
    assert np.ptp(pixels[2:, :2], axis=0).max() == 0  # of SR and HR: the very same pixel
    assert np.ptp(pixels[:, :2], axis=0).max() <= 3 * 4  # LR is four times coarser, bicubic as smooth as it is
    assert list(pixels[2:, 2]) == [BLUE["one"], BLUE["two"], BLUE["HR"]]
    assert not np.array_equal(pixels[-1], before)
    place = pixels[-1]
    drag(page, corner, right=-80, down=40)
    assert list(middles(page)[-1] - place) == [16, -8, 0]
    press(page, "0")
    assert list(middles(page)[-1]) == list(before)


def test_enlarged_pixels_are_not_smoothed(page):
    look_at(page, "a")
    choose(page, "3 one", "5 HR")
    press(page, "+")
    x, y = middle(page.locator("#stage"))
    red = seen(page)[y + 40, x + 20 : x + 260, 0]
    assert len(set(red)) > 5
    assert set(red % 4) == {0}  # levels between those of the pixels would be a mixture of two


@pytest.mark.parametrize(("width", "height"), [(1200, 800), (390, 300)])
def test_picture_fits_its_pane_and_is_smoothed_if_shrunk(open_page, written, width, height):
    page = open_page(written.as_uri(), width=width, height=height)
    look_at(page, "a")
    for mode in ("w", "g"):
        press(page, mode)
        pane, picture = (page.locator(of).first.bounding_box() for of in (".layer", ".world"))
        room = min(pane["width"], pane["height"])
        assert room - SIDE_PX < picture["width"] <= room  # as large as whole pixels can be
    press(page, *"-----")
    assert page.locator(".world img").first.evaluate("made => getComputedStyle(made).imageRendering") == "auto"


def test_error_map_is_the_amplified_difference_to_the_ground_truth(page):
    look_at(page, "a")
    choose(page, "3 one", "4 two")
    press(page, "e")
    expect(page.get_by_text("× 4, white: 64 levels")).to_be_visible()
    expect(page.locator(".layer figcaption").first).to_have_text(
        "one: difference to HR ×4 · PSNR-Y 30.00 · LPIPS 0.1000"
    )
    x, y = middle(page.locator("#stage"))
    for gain, slide in ((4, ""), (8, "ArrowRight"), (1, "Home")):
        if slide:
            page.get_by_role("slider", name="Amplification").press(slide)
        window = seen(page)
        assert list(window[y + 40, x - 100]) == [0, 0, gain * (BLUE["HR"] - BLUE["one"])]
        assert (window[y + 40, x + 20 : x + 200] == 0).all()  # equal images
    press(page, "e")
    assert seen(page)[y + 40, x - 100, 2] == BLUE["one"]


def test_error_map_without_ground_truth_is_the_difference_to_bicubic_and_says_so(page):
    look_at(page, PHOTO, 2)
    choose(page, "3 one", "4 two")
    press(page, "e")
    captions = page.locator(".layer figcaption")
    expect(captions).to_have_text([f"{name}: difference to bicubic ×4" for name in ("one", "two")])
    press(page, "g", "0")
    expect(captions).to_have_text([f"{name}: difference to bicubic ×4" for name in ("LR", "bicubic", "one", "two")])
    page.get_by_role("slider", name="Amplification").press("Home")
    expect(captions.last).to_have_text("two: difference to bicubic ×1")
    _, bicubic, one, two = middles(page)
    assert list(bicubic) == [0, 0, 0]
    assert list(one)[2] == BLUE["one"] - 100
    assert list(two)[2] == BLUE["two"] - 100
    choose(page, "1 LR", "5 HR")
    expect(page.locator(".layer").last).to_contain_text("not available")


def test_keyboard_shortcuts(page):
    look_at(page, "b")
    left, right = page.get_by_label("Left"), page.get_by_label("Right")
    viewer, title = page.locator("#viewer"), page.locator("#viewer-title")
    for arrow, name in (("Right", "c"), ("Right", EVIL), ("Left", "c"), ("Left", "b"), ("Left", "a")):
        press(page, f"Arrow{arrow}")
        expect(title).to_have_text(f"{name} Set")  # as the list is sorted, round and round
    press(page, "1", "Shift+Digit5")
    expect(left).to_have_value("0")
    expect(right).to_have_value("4")
    press(page, "9")  # there is no ninth version
    expect(left).to_have_value("0")
    press(page, "g")
    expect(viewer).to_have_attribute("data-mode", "grid")
    press(page, "w")
    expect(viewer).to_have_attribute("data-mode", "wipe")
    fit = page.locator("#zoom").inner_text()
    press(page, "+", "+", "-")
    assert page.locator("#zoom").inner_text() == f"{2 * int(fit.split()[0])} %"
    press(page, "0")
    expect(page.locator("#zoom")).to_have_text(fit)
    press(page, "?")
    expect(page.get_by_text("previous, next image")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_text("previous, next image")).to_be_hidden()
    expect(viewer).to_be_visible()
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()


def test_pictures_of_previous_images_are_released(page):
    """A hundred images of megapixels each would not fit into memory."""
    look_at(page, "042", 1)
    press(page, "g")
    for _ in range(5):
        press(page, "ArrowRight")
    assert page.evaluate("made") == 2 + 3 + 5 * 5
    assert page.evaluate("kept") == 5  # of the image that is shown


def test_dot_of_the_scatter_plot_shows_its_scores_and_opens_its_image(page):
    figure = page.locator("#benchmark-0 .scatter")
    dots = figure.locator("circle")
    expect(dots).to_have_count(7)  # eight scores, one of them infinite
    positions = [(float(dot.get_attribute("cx")), float(dot.get_attribute("cy"))) for dot in dots.all()]
    shown = [SCORES[label][name] for name in SCORES["one"] for label in SCORES if math.isfinite(SCORES[label][name][0])]
    assert np.corrcoef([x for x, _ in positions], [psnr for psnr, _ in shown])[0, 1] == pytest.approx(1)
    assert np.corrcoef([y for _, y in positions], [lpips for _, lpips in shown])[0, 1] == pytest.approx(-1)
    dots.nth(1).hover()
    expect(figure.locator("figcaption")).to_have_text("b, one: PSNR-Y 20.00, LPIPS 0.3000")
    dots.nth(1).click()
    expect(page.locator("#viewer-title")).to_have_text("b Set")
    expect(page.get_by_label("Right")).to_have_value("2")
    assert page.locator("#benchmark-1 .scatter").count() == 0  # one metric


def test_pictures_that_are_not_embedded_are_named_and_their_scores_listed(open_page, written, monkeypatch, tmp_path):
    monkeypatch.setattr(html_page, "MAX_PICTURE_BYTES", 0)
    hr = save(tmp_path / "hr.png", places(blue=0))
    save(tmp_path / "out/one/Set/a.png", places(blue=0))
    lr = save(tmp_path / "lr.png", places(blue=0)[::4, ::4])
    write_report(
        tmp_path / "html_page.html",
        [Result("one", "one.pth", 4, "RRDB x4", None, {"Set": BenchmarkScores({"a": {"psnr": 30.0}})})],
        benchmarks=[Benchmark("Set", (BenchmarkImage("a", lr, hr),))],
        metrics=METRICS,
        sr_root=tmp_path / "out",
        title=TITLE,
    )
    page = open_page((tmp_path / "html_page.html").as_uri())
    expect(page.locator("tbody")).to_contain_text("30.00")
    page.get_by_role("button", name="a", exact=True).click()
    expect(page.locator(".notice")).to_contain_text("not embedded")
    expect(page.locator(".notice code")).to_have_text("out/one/Set/a.png")
    press(page, "g", "e", "+", "0", "1", "ArrowRight")
    page.mouse.move(600, 500)
    page.mouse.wheel(0, -100)
    drag(page, (600, 500), right=20)
    expect(page.locator(".notice")).to_be_visible()


def test_extra_pictures_can_be_chosen_but_have_no_error_map(open_page, tmp_path):
    hr = save(tmp_path / "hr.png", places(blue=BLUE["HR"]))
    lr = save(tmp_path / "lr.png", places(blue=100)[2::4, 2::4])
    save(tmp_path / "out/one/Set/a.png", places(blue=BLUE["one"]))
    write_report(
        tmp_path / "html_page.html",
        [Result("one", "one.pth", 4, "RRDB x4", None, {"Set": BenchmarkScores({"a": {"psnr": 30.0}})})],
        benchmarks=[Benchmark("Set", (BenchmarkImage("a", lr, hr),))],
        metrics=METRICS,
        sr_root=tmp_path / "out",
        title=TITLE,
        extra_pictures=ExtraPictures(
            ("attention", "fake"), f"What D sees {EVIL}.", lambda hr, sr: [places(blue=20), places(blue=40)]
        ),
    )
    page = open_page((tmp_path / "html_page.html").as_uri())
    expect(page.locator("header .note")).to_have_text(f"What D sees {EVIL}.")
    look_at(page, "a")
    choose(page, "4 HR", "5 attention")
    x, y = middle(page.locator("#stage"))
    window = seen(page)
    assert (window[y, x - 40, 2], window[y, x + 40, 2]) == (BLUE["HR"], 20)
    press(page, "Shift+6")
    expect(page.get_by_label("Right")).to_have_value("5")
    assert seen(page)[y, x + 40, 2] == 40
    press(page, "g")
    assert list(middles(page)[2:, 2]) == [BLUE["one"], BLUE["HR"], 20, 40]
    press(page, "e")
    assert list(middles(page)[2:, 2]) == [4 * abs(BLUE["one"] - BLUE["HR"]), 0, 20, 40]
    expect(page.locator(".layer figcaption").last).to_have_text("fake")


def test_report_without_extra_pictures_has_no_note(page):
    expect(page.locator("header .note")).to_have_text("")
    assert page.locator("header .note").bounding_box()["height"] == 0


def test_folder_without_ground_truth_has_no_hr_no_scatter_plot_and_no_columns_of_scores(open_page, tmp_path):
    lr = save(tmp_path / "lr.png", places(blue=100)[2::4, 2::4])
    for label in ("one", "two"):
        save(tmp_path / "out" / label / "photos/a.png", places(blue=BLUE[label]))
    write_report(
        tmp_path / "html_page.html",
        [Result(name, f"{name}.pth", 4, "", None, {"photos": BenchmarkScores({"a": {}})}) for name in ("one", "two")],
        benchmarks=[Benchmark("photos", (BenchmarkImage("a", lr, None),))],
        metrics={},
        sr_root=tmp_path / "out",
        title=TITLE,
    )
    page = open_page((tmp_path / "html_page.html").as_uri())
    assert page.locator(".scatter, .means, tbody td:nth-child(2)").count() == 0
    look_at(page, "a")
    assert page.get_by_label("Right").locator("option").all_inner_texts() == ["1  LR", "2  bicubic", "3  one", "4  two"]
    press(page, "e")
    expect(page.locator(".layer figcaption").last).to_contain_text("difference to bicubic")


def test_versions_of_another_scale_are_not_offered_for_an_image(open_page, tmp_path):
    """Bicubic and weights, both at two scales: the viewer compares those of the image's own scale, with errors."""
    lr = save(tmp_path / "lr.png", places(blue=100)[2::4, 2::4])
    results, benchmarks = [], []
    for name in ("bicubic", "one"):
        for scale in (2, 4):
            label, benchmark = f"{name}_x{scale}", f"photos_x{scale}"
            save(tmp_path / "out" / label / benchmark / "a.png", places(blue=BLUE["one"]))
            scores = {benchmark: BenchmarkScores({"a": {}})}
            results.append(Result(label, "bicubic" if name == "bicubic" else "one.pth", scale, "", None, scores))
    for scale in (2, 4):
        benchmarks.append(Benchmark(f"photos_x{scale}", (BenchmarkImage("a", lr, None),)))
    path = tmp_path / "html_page.html"
    write_report(path, results, benchmarks=benchmarks, metrics={}, sr_root=tmp_path / "out", title=TITLE)
    page = open_page(path.as_uri())
    for number, scale in ((0, 2), (1, 4), (0, 2)):
        look_at(page, "a", number)
        offered = page.get_by_label("Right").locator("option:enabled").all_inner_texts()
        assert [text.split()[1] for text in offered] == ["LR", f"bicubic_x{scale}", f"one_x{scale}"]
        press(page, "e")
        for caption, label in zip(page.locator(".layer figcaption").all(), ("bicubic", "one"), strict=True):
            expect(caption).to_contain_text(f"{label}_x{scale}: difference to bicubic_x{scale}")
        press(page, "e")
        page.keyboard.press("Escape")


def test_jpeg_and_webp_are_shown_as_png_is(open_page, tmp_path):
    """Side by side with the bicubic version, which is PNG."""
    lr = save(tmp_path / "lr.png", places(blue=100)[2::4, 2::4])
    images = tuple(BenchmarkImage(ext, lr, None, sr_file=f"sub/{ext}_x4.{ext}") for ext in ("jpg", "webp"))
    for image in images:
        save(tmp_path / "out/one/photos" / image.sr_name, places(blue=BLUE["one"]))
    write_report(
        tmp_path / "html_page.html",
        [Result("one", "one.pth", 4, "", None, {"photos": BenchmarkScores({image.name: {} for image in images})})],
        benchmarks=[Benchmark("photos", images)],
        metrics={},
        sr_root=tmp_path / "out",
        title=TITLE,
    )
    page = open_page((tmp_path / "html_page.html").as_uri())
    look_at(page, "jpg")
    press(page, "g")
    for key in ((), ("ArrowRight",)):
        press(page, *key)
        *_, of_one = middles(page)
        assert np.abs(of_one - [4 * SIDE_PX // 2, 4 * SIDE_PX // 2, BLUE["one"]]).max() <= 12


def test_light_and_dark_differ_and_follow_the_system(open_page, written):
    light, dark = (seen(open_page(written.as_uri(), color_scheme=scheme)) for scheme in ("light", "dark"))
    assert light[5, 5].min() > 220
    assert dark[5, 5].max() < 50


def test_phone_needs_no_horizontal_scrolling(open_page, written):
    page = open_page(written.as_uri(), width=390, height=844, has_touch=True)
    assert page.evaluate("document.scrollingElement.scrollWidth") == 390
    look_at(page, "a")
    for key in ("g", "e", "w"):
        press(page, key)
        for button in page.locator("#viewer button, #viewer select, #viewer input").all():
            if button.is_visible():
                box = button.bounding_box()
                assert 0 <= box["x"] <= box["x"] + box["width"] <= 390
        assert page.locator("#stage").bounding_box()["height"] > 600


def test_two_fingers_zoom_and_one_pans(open_page, written):
    page = open_page(written.as_uri(), width=390, height=844, has_touch=True)
    look_at(page, "a")
    choose(page, "3 one", "5 HR")
    before = int(page.locator("#zoom").inner_text().split()[0])
    x, y = middle(page.locator("#stage"))
    y += 100  # away from the knob
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[int, int]) -> None:
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (x + 40, y))
    touch("touchStart", (x + 40, y), (x + 80, y))
    touch("touchMove", (x + 40, y), (x + 120, y))
    touch("touchEnd")
    expect(page.locator("#zoom")).to_have_text(f"{2 * before} %")
    place = seen(page)[y, x + 40]
    touch("touchStart", (x + 40, y))
    touch("touchMove", (x + 80, y - 30))
    touch("touchEnd")
    assert list(seen(page)[y - 30, x + 80]) == list(place)


def test_report_is_usable_while_its_pictures_are_loading(open_page, written):
    page_and_pictures = written.read_bytes()
    start, end = (page_and_pictures.index(b'id="picture-%d"' % number) for number in (3, 4))
    halfway = (start + end) // 2  # in the first image's picture of "one"
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page_and_pictures)))
            self.end_headers()
            self.wfile.write(page_and_pictures[:halfway])
            self.wfile.flush()
            released.wait(20)
            self.wfile.write(page_and_pictures[halfway:])

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = open_page(f"http://127.0.0.1:{server.server_port}/html_page.html")
        page.locator("#benchmark-0 tbody button").first.click()
        page.keyboard.press("g")
        expect(page.locator("#stage[aria-busy=true]")).to_have_count(1)
        released.set()
        expect(page.locator(".layer")).to_have_count(5)
        assert list(middles(page)[2:, 2]) == [BLUE["one"], BLUE["two"], BLUE["HR"]]
        server.shutdown()
