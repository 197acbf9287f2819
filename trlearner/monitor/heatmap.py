"""A matrix between tasks as a picture, drawn with NumPy and Pillow: a few milliseconds each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from trlearner.monitor.palette import colour, limits

SIDE = 256
"""Pixels that the cells take together, about: TensorBoard shows a picture some 350 wide."""
MOST = 256
"""More tasks than this are averaged in blocks, which keeps a picture below some 200 kB."""
CELL = 32
"""At most so many pixels for one cell."""
TEXT = 12
GAP = 8
BAR = 14
NAME = 14
"""So many letters of a name are shown."""
INK = (30, 30, 30)


def heatmap(
    matrix: Float[np.ndarray, "tasks models"],
    names: Sequence[str] | None = None,
    title: str = "",
    scale: int = 1,
    digits: int = 2,
    diagonal: bool = False,
    side: int = SIDE,
    columns: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """The matrix with names at its rows and columns, and a bar that says what the colours mean.

    The diagonal is left white unless it is asked for: a task's relation to itself is 1 and would hide
    the differences among the others.

    Args:
        matrix: One row and one column a task, unless columns have names of their own; NaN is grey.
        names: One a row; a run of equal ones is written once, in its middle.
        title: Above it.
        scale: So many times as large, for print.
        digits: Of the numbers beside the bar.
        diagonal: Whether it says something.
        side: Pixels that the cells take together, about, before `scale`.
        columns: Names of the columns, where these are not the tasks of the rows; then there is no diagonal.
    """
    names = [str(i) for i in range(len(matrix))] if names is None else [str(n) for n in names]
    diagonal = diagonal or columns is not None
    columns = names if columns is None else list(columns)
    cells = matrix.astype(float).copy()
    if not diagonal:
        np.fill_diagonal(cells, np.nan)
    low, high, signed = limits(cells)
    shrunk, block = _shrunk(cells)
    cell = max(1, min(CELL * scale, side * scale // max(shrunk.shape)))
    pixels = colour(shrunk, low, high, signed)
    if not diagonal and len(cells) == len(shrunk):
        pixels[np.arange(len(shrunk)), np.arange(len(shrunk))] = 255
    picture = Image.fromarray(pixels.repeat(cell, 0).repeat(cell, 1))
    font = _font(TEXT * scale)
    rows, below = (
        [name if len(name) <= NAME else name[: NAME - 1] + "…" for name in some[::block]]
        for some in (names, columns)
    )
    margin, bottom = (
        GAP * scale + max((_width(font, name) for name in some), default=0)
        for some in (rows, below)
    )
    top = (TEXT + 2 * GAP) * scale if title else GAP * scale
    numbers = [f"{low + (high - low) * i / 4:.{digits}f}" for i in range(5)]
    right = (2 * GAP + BAR + GAP // 2) * scale + max(_width(font, n) for n in numbers)
    height, width = picture.height, picture.width
    least = margin + (_width(_font(TEXT * scale), title) if title else 0) + GAP * scale
    tall = max(height, 5 * (TEXT + 2) * scale)
    sheet = Image.new(
        "RGB",
        (max(margin + width + right, least), top + tall + bottom + GAP * scale),
        (255, 255, 255),
    )
    sheet.paste(picture, (margin, top))
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((margin, GAP * scale), title, fill=INK, font=font)
    for middle, name in _placed(rows, cell, scale):
        draw.text((margin - 4 * scale, top + middle), name, fill=INK, font=font, anchor="rm")
    for middle, name in _placed(below, cell, scale):
        turned = _turned(name, scale)
        place = (int(margin + middle - turned.width / 2), top + height + 4 * scale)
        sheet.paste(turned, place)
    _draw_bar(sheet, draw, numbers, signed, (margin + width + 2 * GAP * scale, top), tall, scale)
    return np.asarray(sheet)


def mosaic(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Pictures two by two, on white."""
    tall, wide = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    sheet = np.full((-(-len(pictures) // 2) * tall, 2 * wide, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // 2 * tall, i % 2 * wide
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def _shrunk(cells: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Means of blocks, where there are more tasks than `MOST`; and how long these are."""
    block = -(-max(cells.shape) // MOST)
    if block <= 1:
        return cells, 1
    rows, columns = (np.arange(0, length, block) for length in cells.shape)
    known = np.isfinite(cells)

    def blocks(values: NDArray[Any]) -> NDArray[Any]:
        return np.add.reduceat(np.add.reduceat(values, rows, 0), columns, 1)

    total, count = blocks(np.where(known, cells, 0.0)), blocks(known.astype(float))
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0), block


def _placed(names: Sequence[str], cell: int, scale: int) -> Iterator[tuple[float, str]]:
    """Where the middle of each name goes; where there is no room, some are left out."""
    taken = list[float]()
    for middle, name in _runs(names):
        place = (middle + 0.5) * cell
        if all(abs(place - other) >= TEXT * scale for other in taken):
            taken.append(place)
            yield place, name


def _turned(name: str, scale: int) -> Image.Image:
    """A name that reads downwards."""
    font = _font(TEXT * scale)
    turned = Image.new("RGB", (_width(font, name) + 2, (TEXT + 4) * scale), (255, 255, 255))
    ImageDraw.Draw(turned).text((0, turned.height / 2), name, fill=INK, font=font, anchor="lm")
    return turned.rotate(-90, expand=True)


def _draw_bar(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    numbers: Sequence[str],
    signed: bool,
    corner: tuple[int, int],
    height: int,
    scale: int,
) -> None:
    ramp = np.linspace(1.0, 0.0, height)[:, None].repeat(BAR * scale, 1)
    sheet.paste(Image.fromarray(colour(ramp, 0.0, 1.0, signed)), corner)
    for i, number in enumerate(numbers):
        y = corner[1] + (height - 1) * (1 - i / (len(numbers) - 1))
        x = corner[0] + (BAR + GAP // 2) * scale
        anchor = "la" if i == len(numbers) - 1 else ("ld" if i == 0 else "lm")
        draw.text((x, y), number, fill=INK, font=_font(TEXT * scale), anchor=anchor)


def _runs(names: Sequence[str]) -> list[tuple[float, str]]:
    """The middle of each run of equal names, and the name; the longest first."""
    runs, start = [], 0
    for i in range(1, len(names) + 1):
        if i == len(names) or names[i] != names[start]:
            runs.append((i - start, (start + i - 1) / 2, names[start]))
            start = i
    return [(middle, name) for _, middle, name in sorted(runs, key=lambda run: -run[0])]


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _width(font: Any, text: str) -> int:
    return int(font.getlength(text)) + 1
