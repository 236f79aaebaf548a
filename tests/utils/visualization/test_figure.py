"""Figures show every picture completely, with the colours of its colour map."""

import numpy as np

from sed_sr.utils.visualization.figure import BAR_PX, INFERNO, PANEL_PX, VIRIDIS, Panel, Scale, apply_colour_map, draw


def test_colour_maps_are_rgb_from_dark_to_bright():
    dark, bright = apply_colour_map(np.array([[0.0, 1.0]]), VIRIDIS)[0].tolist()
    assert dark[2] > dark[0]  # blue
    assert bright[0] > bright[2]  # yellow
    dark, bright = apply_colour_map(np.array([[0.0, 1.0]]), INFERNO)[0].tolist()
    assert sum(dark) < 10
    assert min(bright[:2]) > 200


def test_values_outside_of_the_scale_get_the_colours_of_its_ends():
    clipped = apply_colour_map(np.array([[-1.0, 2.0]]), VIRIDIS)
    assert np.array_equal(clipped, apply_colour_map(np.array([[0.0, 1.0]]), VIRIDIS))


def test_every_panel_is_in_the_figure_with_its_scale():
    """For any shape, enlarged or shrunk; no panel covers another one."""
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
    for end in apply_colour_map(np.array([[0.0, 1.0]]), VIRIDIS)[0]:
        assert (figure == end).all(axis=2).sum() >= len(panels) * BAR_PX
