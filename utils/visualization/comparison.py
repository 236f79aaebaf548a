"""A picture that compares details of several versions of images, side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_PX, LINE_PX, GAP_PX = 18, 24, 8


def busiest_detail(image: np.ndarray, side_px: int, *, step_px: int) -> tuple[slice, slice]:
    """The square with the most contrast between neighbouring pixels, where versions of an image differ most.

    Args:
        image: (H, W, 3) uint8, sides of at least `side_px`.
        step_px: distance of the squares that are compared, in both directions.

    Returns:
        Rows and columns of the square.
    """
    grey = image.mean(axis=2)
    contrast = np.abs(np.diff(grey, axis=0))[:, 1:] + np.abs(np.diff(grey, axis=1))[1:]
    corners = [
        (top, left)
        for top in range(0, max(1, image.shape[0] - side_px), step_px)
        for left in range(0, max(1, image.shape[1] - side_px), step_px)
    ]
    top, left = max(corners, key=lambda corner: contrast[corner[0] :, corner[1] :][:side_px, :side_px].sum())
    return slice(top, top + side_px), slice(left, left + side_px)


def comparison(titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]], *, zoom: int) -> np.ndarray:
    """Draw images in a grid with a title above each column.

    Args:
        titles: of the columns; may have several lines.
        rows: the images of each row, (H, W, 3) uint8, all of one size.
        zoom: integer factor by which the images are enlarged, by repeating pixels.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = (zoom * side for side in rows[0][0].shape[:2])
    caption_px = LINE_PX * max(title.count("\n") + 1 for title in titles) + GAP_PX
    size = ((width + GAP_PX) * len(titles) - GAP_PX, caption_px + (height + GAP_PX) * len(rows) - GAP_PX)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_PX)
    for column, title in enumerate(titles):
        left = column * (width + GAP_PX)
        place = (left + width / 2, caption_px / 2)
        draw.multiline_text(place, title, "black", font, anchor="mm", align="center")
        for index, row in enumerate(rows):
            detail = Image.fromarray(row[column].repeat(zoom, 0).repeat(zoom, 1))
            canvas.paste(detail, (left, caption_px + index * (height + GAP_PX)))
    return np.array(canvas)
