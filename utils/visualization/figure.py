"""Figures: pictures in rows, each with a title and, for colour-coded values, a colour bar."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL_PX = 320  # longer side of a picture in a figure; pictures are enlarged or shrunk to it
GAP_PX, TITLE_PX, SCALE_PX = 12, 26, 34  # between panels; height of a title, and of a colour bar with its labels
BAR_PX, FONT_PX = 12, 15
FONT = ImageFont.load_default(FONT_PX)
INFERNO, VIRIDIS = cv2.COLORMAP_INFERNO, cv2.COLORMAP_VIRIDIS  # perceptually uniform


@dataclass(frozen=True)
class Scale:
    """A colour bar."""

    colour_map: int  # INFERNO or VIRIDIS
    low: str  # labels of both ends
    high: str


@dataclass(frozen=True)
class Panel:
    """A picture, (H, W, 3) uint8 RGB, with the title above and the colour bar below it."""

    title: str
    picture: np.ndarray
    scale: Scale | None = None


def apply_colour_map(values: np.ndarray, colour_map: int) -> np.ndarray:
    """(H, W) float -> (H, W, 3) uint8; values are clipped to [0, 1]."""
    levels = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
    return cv2.applyColorMap(levels, colour_map)[..., ::-1]  # OpenCV's order is BGR


def draw(rows: Sequence[Sequence[Panel]]) -> np.ndarray:
    """The figure of these panels, (H, W, 3) uint8."""
    drawn = [[_draw_panel(panel) for panel in row] for row in rows]
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


def _draw_panel(panel: Panel) -> Image.Image:
    picture = Image.fromarray(panel.picture)
    factor = PANEL_PX / max(picture.size)
    size = [max(1, round(side * factor)) for side in picture.size]
    # Nearest: the cells of an enlarged map keep their edges.
    picture = picture.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)
    labels_px = round(FONT.getlength(f"{panel.scale.low}    {panel.scale.high}")) if panel.scale else 0
    bar_px = max(picture.width, labels_px)
    width = max(bar_px, round(FONT.getlength(panel.title)))
    drawn = Image.new("RGB", (width, TITLE_PX + picture.height + (SCALE_PX if panel.scale else 0)), "white")
    pen = ImageDraw.Draw(drawn)
    pen.text((0, TITLE_PX / 2), panel.title, "black", FONT, anchor="lm")
    drawn.paste(picture, (0, TITLE_PX))
    if panel.scale:
        top = TITLE_PX + picture.height + 3
        bar = apply_colour_map(np.linspace(0, 1, bar_px)[None].repeat(BAR_PX, axis=0), panel.scale.colour_map)
        drawn.paste(Image.fromarray(bar), (0, top))
        pen.text((0, top + BAR_PX + 2), panel.scale.low, "black", FONT)
        pen.text((bar_px, top + BAR_PX + 2), panel.scale.high, "black", FONT, anchor="ra")
    return drawn
