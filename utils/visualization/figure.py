"""Figures: pictures in rows, each with a title and, where colours stand for values, with a scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL_PX = 320  # the longer side of a picture in a figure, small ones enlarged and large ones shrunk
GAP_PX, TITLE_PX, SCALE_PX = 12, 26, 34  # between panels; height of a title, and of a scale with its words
BAR_PX, FONT_PX = 12, 15
LETTERS = ImageFont.load_default(FONT_PX)


def _colour_map(colours: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(colours), np.uint8).reshape(-1, 3)


# Perceptually uniform colour maps (matplotlib's, CC0): RGB at equal steps from low to high.
INFERNO = _colour_map(
    "000004 0c0826 240c4f 420a68 5d126e 781c6d 932667 ae305c c73e4c dd513a ed6925 f8850f fca50a fac62d f2e661 fcffa4"
)
VIRIDIS = _colour_map(
    "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e 1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725"
)


@dataclass(frozen=True)
class Scale:
    """What the colours of a picture stand for."""

    colours: np.ndarray  # INFERNO or VIRIDIS
    low: str  # words below either end
    high: str


@dataclass(frozen=True)
class Panel:
    """A picture, (H, W, 3) uint8 RGB, and what is written above and below it."""

    title: str
    picture: np.ndarray
    scale: Scale | None = None


def coloured(values: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(H, W) float in [0, 1] -> (H, W, 3) uint8; what lies outside gets the colour of the nearer end."""
    steps = np.linspace(0, 1, len(colours))
    channels = [np.interp(values, steps, channel) for channel in colours.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def draw(rows: Sequence[Sequence[Panel]]) -> np.ndarray:
    """The figure of these panels, (H, W, 3) uint8."""
    drawn = [[_drawn(panel) for panel in row] for row in rows]
    widths = [sum(panel.width + GAP_PX for panel in row) + GAP_PX for row in drawn]
    heights = [max(panel.height for panel in row) + GAP_PX for row in drawn]
    figure = Image.new("RGB", (max(widths), sum(heights) + GAP_PX), "white")
    top = GAP_PX
    for row, height in zip(drawn, heights, strict=True):
        left = GAP_PX
        for panel in row:
            figure.paste(panel, (left, top))
            left += panel.width + GAP_PX
        top += height
    return np.array(figure)


def _drawn(panel: Panel) -> Image.Image:
    picture = Image.fromarray(panel.picture)
    factor = PANEL_PX / max(picture.size)
    size = [max(1, round(side * factor)) for side in picture.size]
    # Cells of a map keep their edges where they are enlarged.
    picture = picture.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)
    words_px = round(LETTERS.getlength(f"{panel.scale.low}    {panel.scale.high}")) if panel.scale else 0
    below_px = max(picture.width, words_px)
    width = max(below_px, round(LETTERS.getlength(panel.title)))
    drawn = Image.new("RGB", (width, TITLE_PX + picture.height + (SCALE_PX if panel.scale else 0)), "white")
    draw = ImageDraw.Draw(drawn)
    draw.text((0, TITLE_PX / 2), panel.title, "black", LETTERS, anchor="lm")
    drawn.paste(picture, (0, TITLE_PX))
    if panel.scale:
        top = TITLE_PX + picture.height + 3
        bar = coloured(np.linspace(0, 1, below_px)[None].repeat(BAR_PX, axis=0), panel.scale.colours)
        drawn.paste(Image.fromarray(bar), (0, top))
        draw.text((0, top + BAR_PX + 2), panel.scale.low, "black", LETTERS)
        draw.text((below_px, top + BAR_PX + 2), panel.scale.high, "black", LETTERS, anchor="ra")
    return drawn
