"""The demo deletes no files of others, and its comparison shows the most detailed crop."""

import numpy as np
import pytest

from examples.demo import DETAIL_PX, busiest_corner, create_output_folder
from sed_sr.options.errors import UserError


def test_folder_with_other_content_is_refused_and_kept(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="was not written by the demo"):
        create_output_folder(tmp_path)
    assert (tmp_path / "results" / "mine.txt").read_text() == "mine"


def test_output_of_an_earlier_demo_is_deleted(tmp_path):
    create_output_folder(tmp_path / "demo")
    (tmp_path / "demo" / "results").mkdir()
    create_output_folder(tmp_path / "demo")
    assert not (tmp_path / "demo" / "results").exists()


def test_crop_with_the_most_contrast_is_shown():
    image = np.zeros((3 * DETAIL_PX, 3 * DETAIL_PX, 3), np.uint8)
    top, left = DETAIL_PX, 2 * DETAIL_PX - 40
    image[top : top + DETAIL_PX : 2, left : left + DETAIL_PX] = 255
    found = busiest_corner(image)
    assert abs(found[0] - top) <= 4
    assert abs(found[1] - left) <= 4
