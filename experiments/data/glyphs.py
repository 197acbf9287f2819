"""Glyphs: drawn letters of a dozen scripts, made from the fonts that come with matplotlib.

A stand-in for Omniglot that needs no download: every letter and digit of DejaVu Sans that looks unlike
all before it, 20 drawings of each by `handwriting` from the twelve faces of DejaVu, with pens of several
widths, 28 x 28, ink is 1. Splits differ in their characters. The shifted split has test characters out of
other families, STIX and Computer Modern, where these have them (Latin, Greek, Cyrillic).
"""

from __future__ import annotations

import itertools
import math
import random
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from trlearner.experiments.data import handwriting
from trlearner.experiments.data.cache import Draft, cached, fingerprint
from trlearner.experiments.data.gallery import Gallery, Kind
from trlearner.experiments.data.handwriting import Hand, drawn
from trlearner.experiments.data.problem import Request
from trlearner.experiments.data.setting import Range, option

SLANTS = "", "-Bold", "-Oblique", "-BoldOblique"
SEEN = (
    *(f"DejaVuSans{slant}" for slant in SLANTS),
    *(f"DejaVuSansMono{slant}" for slant in SLANTS),
    *(f"DejaVuSerif{slant.replace('Oblique', 'Italic')}" for slant in SLANTS),
)
# No mathematical ones: their code points lie (cmsy10 draws an arrow where "a" should be).
UNSEEN = (
    *("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta"),
    *("cmr10", "cmss10", "cmtt10", "cmti10", "cmb10"),
)
EM, CANVAS = 80, 160
PENS, BOLD_PENS = (-1, 0, 0, 1, 2), (-1, -1, 0, 0, 1)
"""Strokes are wider by so many pixels on each side; -1 is narrower."""
ALIKE = 0.9
"""Characters whose blurred prints have a larger cosine than this count as one."""


def by_character(request: Request) -> dict[str, Gallery]:
    """64 % of the characters to train on, 16 % for validation, 20 % to test, also in other fonts.

    Option: ``drawings`` of each character (20).
    """
    gallery = glyphs(option(request.options, "drawings", 20, int, Range(2, 1000)))
    seen = gallery.where(lambda kind: kind.group != "shifted")
    splits = seen.split("name", {"train": 64, "validation": 16, "test": 20})
    test = {kind.name for kind in splits["test"].kinds}
    shifted = gallery.where(lambda kind: kind.group == "shifted" and kind.name in test)
    return {**splits, "shifted": shifted}


def glyphs(drawings: int, only: str | None = None) -> Gallery:
    """All characters, or some, in the seen fonts by script; then in unseen fonts, group ``shifted``."""
    import PIL
    from PIL import features

    code = fingerprint([Path(__file__), Path(handwriting.__file__)])
    versions = [PIL.__version__, features.version("freetype2"), unicodedata.unidata_version]
    fonts = fingerprint(_file(name) for name in (*SEEN, *UNSEEN))
    key = {"code": code, "versions": versions, "fonts": fonts, "drawings": drawings, "only": only}
    return cached("glyphs", key, lambda: _draft(drawings, only))


def characters() -> list[str]:
    """Letters and digits of DejaVu Sans, without accented ones, that look unlike all before them."""
    have = sorted(_points(SEEN[0]))
    letters = [
        chr(point)
        for point in have
        if unicodedata.category(chr(point)) in ("Lu", "Ll", "Lo", "Nd")
        and not unicodedata.decomposition(chr(point))
    ]
    prints = [_print(letter, SEEN[0], 0) for letter in letters]
    good = [i for i, print_ in enumerate(prints) if _is_legible(*print_)]
    looks = torch.stack([_look(*prints[i]) for i in good])
    similar = looks @ looks.T
    kept: list[int] = []
    for i in range(len(good)):
        if not kept or similar[i, kept].max() < ALIKE:
            kept.append(i)
    return [letters[good[i]] for i in kept]


def _is_legible(canvas: np.ndarray, box: tuple[int, int]) -> bool:
    """Whether there is ink, all of it on the canvas, and more than a dot or a bar."""
    return max(box) < CANVAS and 0 < int(canvas.sum()) / 255 < 0.8 * math.prod(box)


def _look(canvas: np.ndarray, box: tuple[int, int]) -> Tensor:
    """A print's shape without its size, blurred: a vector of length one."""
    half = max(box) / 2 * 28 / 20
    low, high = round(CANVAS / 2 - half), round(CANVAS / 2 + half)
    middle = torch.from_numpy(canvas).float()[None]
    middle = F.pad(middle, [CANVAS] * 4)[
        ..., CANVAS + low : CANVAS + high, CANVAS + low : CANVAS + high
    ]
    small = F.interpolate(middle[None], (14, 14), mode="bilinear", antialias=True)
    return F.normalize(small.flatten(), dim=0)


def _draft(drawings: int, only: str | None) -> Draft:
    chars = characters() if only is None else list(only)
    unseen = [_points(font) for font in UNSEEN]
    also = [char for char in chars if any(ord(char) in points for points in unseen)]
    rows = [(char, _name(char).split()[0], SEEN) for char in chars]
    rows += [(char, "shifted", UNSEEN) for char in also]
    kinds = [Kind(_name(char), group, drawings) for char, group, _ in rows]
    return Draft(kinds, (1, Hand.side, Hand.side), _blocks(rows, drawings))


def _blocks(rows: Sequence[tuple[str, str, Sequence[str]]], drawings: int) -> Iterator[np.ndarray]:
    points = {font: _points(font) for font in (*SEEN, *UNSEEN)}
    generator = torch.Generator().manual_seed(0)
    for char, group, fonts in rows:
        chance = random.Random(f"{char} {group}")
        faces = [font for font in fonts if ord(char) in points[font]]
        chance.shuffle(faces)
        prints = [
            _print(char, face, chance.choice(BOLD_PENS if "Bol" in face else PENS))
            for face in itertools.islice(itertools.cycle(faces), drawings)
        ]
        canvases = torch.from_numpy(np.stack([canvas for canvas, _ in prints]))[:, None]
        boxes = torch.tensor([box for _, box in prints])
        yield drawn(canvases, boxes, Hand(), generator).numpy()


def _name(char: str) -> str:
    return unicodedata.name(char).lower()


def _print(char: str, font: str, pen: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A character in the middle of a canvas, and the width and height of its ink."""
    from PIL import Image, ImageDraw

    page = Image.new("L", (2 * CANVAS, 2 * CANVAS))
    place = CANVAS / 2, CANVAS / 2
    ImageDraw.Draw(page).text(place, char, 255, _truetype(font), stroke_width=max(pen, 0))
    left, top, right, bottom = page.getbbox() or (0, 0, 1, 1)
    middle = (left + right) // 2 - CANVAS // 2, (top + bottom) // 2 - CANVAS // 2
    canvas = np.array(page.crop((*middle, middle[0] + CANVAS, middle[1] + CANVAS)))
    return _narrower(canvas) if pen < 0 else canvas, (right - left, bottom - top)


def _narrower(canvas: np.ndarray) -> np.ndarray:
    """Strokes without their outermost pixels, unless little would be left of hairlines."""
    least = canvas.copy()
    for axis, step in itertools.product((0, 1), (-1, 1)):
        np.minimum(least, np.roll(canvas, step, axis), out=least)
    return least if least.sum() > 0.5 * canvas.sum() else canvas


FONTS: dict[str, Any] = {}


def _truetype(font: str) -> Any:
    from PIL import ImageFont

    if font not in FONTS:
        FONTS[font] = ImageFont.truetype(_file(font), EM)
    return FONTS[font]


def _points(font: str) -> Mapping[int, int]:
    """The code points that a font has glyphs for."""
    from matplotlib.ft2font import FT2Font

    return FT2Font(str(_file(font))).get_charmap()


def _file(font: str) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
