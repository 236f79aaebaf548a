import numpy as np
import pytest
from PIL import Image

import sed_sr.data.image_folders
from sed_sr.data.images import write_image
from sed_sr.data.pairs import check_pairs, find_pairs
from sed_sr.options.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(name, size=(16, 16)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_image(tmp_path / name, np.zeros((*size, 3), np.uint8))

    return write


def names(pairs):
    return [(hr.name, lr.name) for hr, lr in pairs]


def test_images_pair_by_name_whatever_the_order(tmp_path, write):
    # Sorted by name, a-b.png and ax4.png stand in another order than their partners.
    for name in ("hr/a.png", "hr/a-b.png", "hr/ü.png", "lr/ax4.png", "lr/a-bx4.png", "lr/üx4.png"):
        write(name)
    assert names(find_pairs(tmp_path / "hr", tmp_path / "lr")) == [
        ("a-b.png", "a-bx4.png"),
        ("a.png", "ax4.png"),
        ("ü.png", "üx4.png"),
    ]


def test_equal_names_need_no_suffix_and_may_end_like_one(tmp_path, write):
    for name in ("hr/box4.png", "hr/1.png", "lr/box4.png", "lr/1.png"):
        write(name)
    assert names(find_pairs(tmp_path / "hr", tmp_path / "lr")) == [("1.png", "1.png"), ("box4.png", "box4.png")]


def test_missing_and_extra_images_are_counted_and_named(tmp_path, write):
    for name in ("hr/1.png", "hr/2.png", "hr/3.png", "lr/1x4.png", "lr/5x4.png"):
        write(name)
    with pytest.raises(UserError) as error:
        find_pairs(tmp_path / "hr", tmp_path / "lr")
    assert "2 of 3" in str(error.value)
    assert "(2.png, 3.png)" in str(error.value)
    assert "1 of 2" in str(error.value)
    assert "(5x4.png)" in str(error.value)


NFC, NFD = "ü.png", "u\u0308.png"  # ü as one character, and as u with two dots put above it


@pytest.mark.parametrize(
    ("hr", "lr", "hint"),
    [
        (["Baby.png", "BIRD.png"], ["baby.png", "birdx4.png"], "; the names differ only in upper and lower case"),
        ([NFC], [NFD], r"; the names differ only in Unicode normal form .* \('\\xfc\.png' and 'u\\u0308\.png'\)"),
        (["a_HR.png"], ["a_LR.png"], r"; the names differ only in endings .*_HR, .* \(a_HR\.png and a_LR\.png\)"),
        (["a.png"], ["a_LR4.png"], "; the names differ only in endings"),
        (["a_HR.png"], ["a_LRx4.png"], "; the names differ only in endings"),
        (["a.png"], ["a_x4.png"], "; the names differ only in endings"),
        ([f"A{NFC}"], [f"a{NFD}"], "; the names differ only in upper and lower case and in Unicode normal form"),
        (
            ["A.png", "b.png", "c.png"],
            ["a.png", "b.png"],
            r"; 1 of the names differ only in upper .* \(A\.png and a\.png\)",
        ),
    ],
)
def test_names_that_almost_pair_raise_an_error_with_their_difference(tmp_path, write, hr, lr, hint):
    for name in (*(f"hr/{name}" for name in hr), *(f"lr/{name}" for name in lr)):
        write(name)
    with pytest.raises(
        UserError, match=f"do not pair by name: .*{hint}.*; an LR image is expected to have the name of"
    ):
        find_pairs(tmp_path / "hr", tmp_path / "lr")


def test_names_that_have_nothing_in_common_get_no_hint(tmp_path, write):
    for name in ("hr/a.png", "lr/b.png"):
        write(name)
    with pytest.raises(UserError, match=r"\(b\.png\); an LR image is expected"):
        find_pairs(tmp_path / "hr", tmp_path / "lr")


def test_only_the_first_five_problems_are_shown(tmp_path, write):
    for number in range(9):
        write(f"hr/{number}.png")
    write("lr/0.png")
    with pytest.raises(UserError, match=r"8 of 9 .*\(1\.png, 2\.png, 3\.png, 4\.png, 5\.png, \.\.\.\)"):
        find_pairs(tmp_path / "hr", tmp_path / "lr")


@pytest.mark.parametrize("twice", ["hr/1.jpg", "lr/1x4.png"])
def test_two_images_of_one_name_are_refused(tmp_path, write, twice):
    for name in ("hr/1.png", "hr/2.png", "lr/1.png", "lr/2x4.png"):
        write(name)
    (tmp_path / twice).touch()
    with pytest.raises(UserError, match=r"1\.png"):
        find_pairs(tmp_path / "hr", tmp_path / "lr")


@pytest.mark.parametrize("lr_size", [(4, 5), (5, 6), (4, 6)])
def test_lr_sides_may_be_rounded_down_or_up(tmp_path, write, lr_size):
    write("hr/1.png", (17, 22))
    write("lr/1x4.png", lr_size)
    check_pairs(find_pairs(tmp_path / "hr", tmp_path / "lr"), scale=4, lr_patch_px=4)


def test_pairs_of_wrong_size_are_named_with_what_was_given_and_expected(tmp_path, write):
    for number, lr_size in enumerate([(4, 5), (8, 10), (3, 5)]):
        write(f"hr/{number}.png", (16, 20))
        write(f"lr/{number}x4.png", lr_size)
    with pytest.raises(UserError) as error:
        check_pairs(find_pairs(tmp_path / "hr", tmp_path / "lr"), scale=4, lr_patch_px=3)
    message = str(error.value)
    assert "2 of 3" in message
    folders = tmp_path / "hr", tmp_path / "lr"
    assert "{1}/1x4.png is 10x8, and {0}/1.png is 20x16, so 5x4 is expected".format(*folders) in message
    assert "2x4.png is 5x3" in message
    assert "0x4.png" not in message


def test_every_pair_is_checked_for_any_format_and_number(tmp_path, write, monkeypatch):
    monkeypatch.setattr(sed_sr.data.image_folders, "IMAGES_PER_TASK", 4)
    for number in range(10):
        write(f"hr/{number}.png", (16, 20))
        write(f"lr/{number}.png", (3, 5) if number in (3, 9) else (4, 5))
    for number, side in ((4, 16), (6, 15), (8, 20)):
        (tmp_path / f"hr/{number}.png").unlink()
        Image.new("RGB", (20, side)).save(tmp_path / f"hr/{number}.jpg")
    with pytest.raises(UserError, match="3 of 10 pairs") as error:
        check_pairs(find_pairs(tmp_path / "hr", tmp_path / "lr"), scale=4, lr_patch_px=3)
    assert [name for name in map(str, range(10)) if f"{name}.png is" in str(error.value)] == ["3", "8", "9"]


def test_images_smaller_than_the_patch_are_named(tmp_path, write):
    # The LR side of 5 holds only 4 pixels that have a whole HR block.
    write("hr/1.png", (17, 40))
    write("lr/1x4.png", (5, 10))
    pairs = find_pairs(tmp_path / "hr", tmp_path / "lr")
    check_pairs(pairs, scale=4, lr_patch_px=4)
    with pytest.raises(UserError, match=r"1x4\.png is 10x5, smaller than the LR patch of 5"):
        check_pairs(pairs, scale=4, lr_patch_px=5)


def test_unreadable_headers_are_named_like_wrong_sizes(tmp_path, write):
    write("hr/1.png")
    write("lr/1.png", (4, 4))
    (tmp_path / "lr/1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 1 .*lr/1\.png"):
        check_pairs(find_pairs(tmp_path / "hr", tmp_path / "lr"), scale=4, lr_patch_px=2)
