"""Figures show every picture whole, in colours that mean what they say."""

import cv2
import numpy as np
import pytest

from sed_sr.utils.visualization.figure import BAR_PX, INFERNO, PANEL_PX, VIRIDIS, Panel, Scale, coloured, draw


@pytest.mark.parametrize(("ours", "opencv"), [(INFERNO, cv2.COLORMAP_INFERNO), (VIRIDIS, cv2.COLORMAP_VIRIDIS)])
def test_colour_maps_are_those_that_opencv_has(ours, opencv):
    levels = np.arange(256, dtype=np.uint8)[None]
    expected = cv2.applyColorMap(levels, opencv)[..., ::-1].astype(int)
    assert np.abs(coloured(levels / 255, ours) - expected).max() <= 8


def test_values_beyond_the_scale_get_the_colours_of_its_ends():
    assert (coloured(np.array([[-1.0, 2.0]]), VIRIDIS) == [[VIRIDIS[0], VIRIDIS[-1]]]).all()


def test_every_panel_is_in_the_figure_with_its_scale():
    """Of any shape, enlarged or shrunk; none covers another one."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)]
    shapes = [(8, 8), (900, 300), (40, 800), (1, 5)]
    panels = [
        Panel("title " * 20, np.full((*shape, 3), colour, np.uint8), Scale(VIRIDIS, "low", "high"))
        for shape, colour in zip(shapes, colours, strict=True)
    ]
    figure = draw([panels[:3], panels[3:]])
    for (height, width), colour in zip(shapes, colours, strict=True):
        pixels = (figure == colour).all(axis=2).sum()
        longer = max(height, width)
        assert pixels == round(PANEL_PX * height / longer) * round(PANEL_PX * width / longer)
    for end in (VIRIDIS[0], VIRIDIS[-1]):
        assert (figure == end).all(axis=2).sum() >= len(panels) * BAR_PX
