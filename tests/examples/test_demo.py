"""The demo harms nothing and shows what there is to see; that it runs is seen by running it."""

import numpy as np
import pytest

from examples.demo import DETAIL_PX, busiest_corner, clear
from sed_sr.options.errors import UserError


def test_folder_of_somebody_else_is_refused_and_kept(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="no demo's"):
        clear(tmp_path)
    assert (tmp_path / "results" / "mine.txt").read_text() == "mine"


def test_folder_of_an_earlier_demo_is_emptied(tmp_path):
    clear(tmp_path / "demo")
    (tmp_path / "demo" / "results").mkdir()
    clear(tmp_path / "demo")
    assert not (tmp_path / "demo" / "results").exists()


def test_detail_with_the_most_contrast_is_shown():
    image = np.zeros((3 * DETAIL_PX, 3 * DETAIL_PX, 3), np.uint8)
    top, left = DETAIL_PX, 2 * DETAIL_PX - 40
    image[top : top + DETAIL_PX : 2, left : left + DETAIL_PX] = 255
    found = busiest_corner(image)
    assert abs(found[0] - top) <= 4
    assert abs(found[1] - left) <= 4
