import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

import sed_sr.data.pair_content
from sed_sr.data.images import write_image
from sed_sr.data.imresize import imresize
from sed_sr.data.pair_content import check_content
from sed_sr.data.pairs import find_pairs
from sed_sr.options.errors import UserError

HR_PX = 192
PHOTOS = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
CORNERS = [
    (photo, top, left)
    for photo in PHOTOS
    for top in range(8, photo.shape[0] - HR_PX - 8, HR_PX)
    for left in range(8, photo.shape[1] - HR_PX - 8, HR_PX)
]
HR = [photo[top : top + HR_PX, left : left + HR_PX] for photo, top, left in CORNERS]
# The smallest that are compared, where chance plays the largest part.
SMALL_HR = [image[top : top + 96, left : left + 96] for image in HR for top in (0, 96) for left in (0, 96)]


def bicubic(hr, *, scale=4):
    return imresize(hr, scale=1 / scale)


def by_opencv(interpolation):
    return lambda hr: cv2.resize(hr, None, fx=1 / 4, fy=1 / 4, interpolation=interpolation)


def by_pillow(resample):
    return lambda hr: np.asarray(Image.fromarray(hr).resize((hr.shape[1] // 4, hr.shape[0] // 4), resample))


def blurred(hr, *, sigma_px=2.5):
    return cv2.GaussianBlur(hr, (0, 0), sigma_px)


def as_jpeg(image, *, quality=60):
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)


def noisy_jpeg(hr):
    noise = np.random.default_rng(0).normal(0, 10, (hr.shape[0] // 4, hr.shape[1] // 4, 3))
    return as_jpeg(np.clip(bicubic(blurred(hr)) + noise, 0, 255).astype(np.uint8))


def toned(factor, offset):
    return lambda hr: np.clip(bicubic(hr) * factor + offset, 0, 255).astype(np.uint8)


@pytest.fixture
def write_pairs(tmp_path):
    """write_pairs(hr images, lr images) -> Pairs"""

    def write(hr, lr):
        for number, (hr_image, lr_image) in enumerate(zip(hr, lr, strict=True)):
            write_image(tmp_path / "hr" / f"{number:04d}.png", hr_image)
            write_image(tmp_path / "lr" / f"{number:04d}x4.png", lr_image)
        return find_pairs(tmp_path / "hr", tmp_path / "lr")

    return write


def compare(pairs, *, scale=4, samples=100):
    return check_content(pairs, scale=scale, samples=samples, seed=1)


def wrong_and_compared(error):
    wrong, compared = re.match(r"(\d+) of (\d+) compared", str(error)).groups()
    return int(wrong), int(compared)


def shifted(down, right):
    """LR pieces that were cut so many HR pixels further down and right than the HR pieces."""
    for photo, top, left in CORNERS:
        yield bicubic(photo[top + down : top + down + HR_PX, left + right : left + right + HR_PX])


@pytest.mark.parametrize(
    "shrink",
    [
        pytest.param(bicubic, id="bicubic"),
        pytest.param(by_opencv(cv2.INTER_AREA), id="area"),
        pytest.param(by_opencv(cv2.INTER_LINEAR), id="bilinear without antialiasing"),
        pytest.param(by_opencv(cv2.INTER_LANCZOS4), id="Lanczos without antialiasing"),
        pytest.param(by_pillow(Image.Resampling.LANCZOS), id="Lanczos"),
        pytest.param(by_pillow(Image.Resampling.NEAREST), id="nearest"),
        pytest.param(lambda hr: blurred(hr)[::4, ::4], id="upper left pixels"),
        pytest.param(lambda hr: blurred(hr)[3::4, 3::4], id="lower right pixels"),
        pytest.param(lambda hr: bicubic(blurred(hr)), id="blur"),
        pytest.param(noisy_jpeg, id="blur, noise and JPEG"),
        pytest.param(toned(1.0, 40), id="brighter"),
        pytest.param(toned(0.4, 20), id="less contrast"),
        pytest.param(toned(1.6, -60), id="more contrast"),
    ],
)
def test_matching_pairs_pass_for_every_way_to_make_lr(write_pairs, shrink):
    assert compare(write_pairs(SMALL_HR, map(shrink, SMALL_HR))) >= len(SMALL_HR) / 4


@pytest.mark.parametrize("hr", [HR, SMALL_HR], ids=["192", "96"])
def test_shuffled_pairs_are_refused(write_pairs, hr):
    lr = [bicubic(image) for image in hr]
    with pytest.raises(UserError, match=r"x4\.png shows another picture") as error:
        compare(write_pairs(hr, lr[5:] + lr[:5]))
    assert "shifted" not in str(error.value)


def test_images_of_the_same_brightness_but_other_content_are_rejected(write_pairs):
    light = np.linspace(0, 100, HR_PX)[:, None, None]
    hr = [(0.6 * image + light).astype(np.uint8) for image in HR]
    lr = [bicubic(image) for image in hr]
    with pytest.raises(UserError) as error:
        compare(write_pairs(hr, lr[1:] + lr[:1]))
    wrong, compared = wrong_and_compared(error.value)
    assert wrong == compared


@pytest.mark.parametrize(
    ("down", "right", "words"),
    [
        (2, 0, "2 px down"),
        (0, -2, "2 px left"),
        (-3, 1, "1 px right and 3 px up"),
        (4, 8, "8 px right and 4 px down"),
    ],
)
def test_shifts_are_measured_in_hr_pixels(write_pairs, down, right, words):
    with pytest.raises(UserError, match=rf"x4\.png is shifted: it shows what is {words} in HR") as error:
        compare(write_pairs(HR, shifted(down, right)))
    message = str(error.value)
    assert message.count(words) == message.count("shows") == 5  # all that are shown


def test_compression_does_not_hide_a_shift(write_pairs):
    with pytest.raises(UserError) as error:
        compare(write_pairs(HR, [as_jpeg(lr, quality=80) for lr in shifted(2, 2)]))
    wrong, compared = wrong_and_compared(error.value)
    assert wrong > compared / 4


@pytest.mark.parametrize("scale", [2, 3, 8])
def test_more_than_half_a_block_is_a_shift_at_every_scale(write_pairs, scale):
    px = 288
    shift = scale // 2 + 1
    hr = [photo[:px, :px] for photo in PHOTOS]
    compare(write_pairs(hr, [blurred(image, sigma_px=scale / 2)[::scale, ::scale] for image in hr]), scale=scale)
    with pytest.raises(UserError, match=f"it shows what is {shift} px right "):
        compare(
            write_pairs(hr, [bicubic(photo[:px, shift : shift + px], scale=scale) for photo in PHOTOS]), scale=scale
        )


def test_periodic_pictures_are_not_shifted_by_their_period(write_pairs):
    y, x = np.mgrid[:HR_PX, :HR_PX]
    patterns = [(x // 8 % 2) * 255, (x // 8 + y // 8) % 2 * 255, x // 12 % 2 * 200, 120 + 80 * np.sin(x / 3)]
    hr = [np.repeat(pattern[..., None], 3, 2).astype(np.uint8) for pattern in patterns]
    assert compare(write_pairs(hr, map(by_opencv(cv2.INTER_AREA), hr))) > 0


def test_pictures_without_contrast_are_not_compared(write_pairs):
    y, x = np.mgrid[:HR_PX, :HR_PX]
    noise = np.random.default_rng(0).normal(0, 10, (HR_PX, HR_PX))
    hr = [np.repeat(image[..., None], 3, 2).astype(np.uint8) for image in (x * 0 + 90, x / 2 + y / 4, 90 + noise)]
    lr = [bicubic(image) for image in hr]
    assert compare(write_pairs(hr, lr[1:] + lr[:1])) == 0


@pytest.mark.parametrize("lr_px", [(45, 46), (46, 46), (46, 47)])
def test_sides_rounded_down_or_up_compare_what_they_share(write_pairs, lr_px):
    hr = [image[:183, :186] for image in HR]
    lr = [bicubic(image)[: lr_px[0], : lr_px[1]] for image in HR]
    assert compare(write_pairs(hr, lr)) > len(HR) / 2


ODD_HR = [image[: 192 - number % 4, : 191 - number % 3] for number, image in enumerate(HR)]  # of all remainders by 4


def whole_blocks(hr):
    return hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]


def resized(rounding, how):
    """HR resized to its sides / 4, rounded."""
    return lambda hr: how(hr, tuple(int(rounding(side / 4)) for side in hr.shape[1::-1]))


def pillow(hr, sides):
    return np.asarray(Image.fromarray(hr).resize(sides, Image.Resampling.BICUBIC))


def area(hr, sides):
    return cv2.resize(hr, sides, interpolation=cv2.INTER_AREA)


def cubic(hr, sides):
    return cv2.resize(hr, sides, interpolation=cv2.INTER_CUBIC)  # without antialiasing


@pytest.mark.parametrize(
    "shrink",
    [
        resized(np.floor, pillow),
        resized(np.ceil, pillow),
        resized(np.round, pillow),
        resized(np.ceil, area),
        resized(np.floor, cubic),
        pytest.param(lambda hr: as_jpeg(resized(np.floor, pillow)(hr), quality=80), id="JPEG"),
    ],
)
def test_lr_resized_to_rounded_sides_is_refused_with_the_command_that_makes_it_again(write_pairs, shrink, command):
    pairs = write_pairs(ODD_HR, map(shrink, ODD_HR))
    with pytest.raises(UserError, match=r"not aligned: .* multiples of 4 first.*: python -m data") as error:
        compare(pairs)
    _, *words = shlex.split(str(error.value).rpartition(": ")[2])
    assert command(*words, cwd=pairs.hr.root).returncode == 0
    assert compare(find_pairs(pairs.hr.root, Path(words[words.index("--output") + 1]))) > len(HR) / 2


def test_subimages_are_not_cut_from_lr_resized_to_rounded_sides(write_pairs, command):
    pairs = write_pairs(ODD_HR, map(resized(np.floor, pillow), ODD_HR))
    cut = ("extract_subimages.py", "--crop_size", 96, "--step", 48, "--input", "hr", "--output", "hr_sub")
    folder = pairs.hr.root.parent
    done = command(*cut, "--input_lr", "lr", "--output_lr", "lr_sub", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the pairs of hr and lr are not aligned" in done.stderr
    assert not (folder / "hr_sub").exists()
    damaged = folder / "lr/0000x4.png"
    damaged.write_bytes(damaged.read_bytes()[:500])
    again = shlex.split(done.stderr.rpartition(": ")[2])
    assert command(*again[1:], cwd=folder).returncode == 0
    assert command(*cut, "--input_lr", "lr_aligned", "--output_lr", "lr_sub", cwd=folder).returncode == 0


@pytest.mark.parametrize(
    "shrink",
    [
        pytest.param(lambda hr: bicubic(whole_blocks(hr)), id="cropped"),
        pytest.param(bicubic, id="MATLAB, rounded up"),
        pytest.param(by_opencv(cv2.INTER_LINEAR), id="OpenCV by a factor"),
        pytest.param(lambda hr: blurred(hr)[::4, ::4], id="upper left pixels"),
        pytest.param(lambda hr: blurred(hr)[3::4, 3::4], id="lower right pixels"),
        pytest.param(lambda hr: noisy_jpeg(whole_blocks(hr)), id="blur, noise and JPEG"),
        pytest.param(lambda hr: toned(1.6, -60)(whole_blocks(hr)), id="more contrast"),
    ],
)
def test_lr_of_the_exact_scale_is_accepted_where_it_does_not_divide_hr(write_pairs, shrink):
    assert compare(write_pairs(ODD_HR, map(shrink, ODD_HR))) > len(HR) / 2


def test_shuffled_pairs_of_rounded_sides_are_called_other_pictures(write_pairs):
    lr = [bicubic(image)[:47, :47] for image in HR]
    with pytest.raises(UserError, match="shows another picture"):
        compare(write_pairs([image[:191, :190] for image in HR], lr[5:] + lr[:5]))


def test_one_wrong_pair_is_accepted_but_two_are_rejected(write_pairs):
    lr = [bicubic(hr) for hr in HR]
    compare(write_pairs(HR, [lr[5], *lr[1:]]))
    with pytest.raises(UserError, match=r"2 of \d+ compared .*: 0000x4\.png shows another .*; 0001x4\.png shows"):
        compare(write_pairs(HR, [lr[5], lr[6], *lr[2:]]))


def test_the_sample_is_spread_over_the_set_and_follows_the_seed(write_pairs, monkeypatch):
    pairs = write_pairs([image[:16, :16] for image in HR[:1] * 40], [image[:4, :4] for image in HR[:1] * 40])
    read = sed_sr.data.pair_content.read_image

    def sample(samples, seed):
        seen = set()
        monkeypatch.setattr(
            sed_sr.data.pair_content, "read_image", lambda path: seen.add(Path(path).name) or read(path)
        )
        check_content(pairs, scale=4, samples=samples, seed=seed)
        return sorted(int(name[:4]) for name in seen if "x4" not in name)

    assert sample(10, 1) == sample(10, 1) != sample(10, 2)
    assert [number // 4 for number in sample(10, 3)] == list(range(10))
    assert sample(1000, 1) == list(range(40))
