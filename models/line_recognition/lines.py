"""Lines of text as pictures, and what the recognizer reads in them.

The model is PP-OCRv4's recognizer of Chinese and English lines (Apache-2.0). It carries its
characters in the metadata: class 0 is CTC's blank, the last one a space.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Line", "edit_distance", "lines", "read"]

#: Where Debian's ``fonts-dejavu-core`` and ``fonts-dejavu-extra`` put their fonts.
FONTS = Path("/usr/share/fonts/truetype/dejavu")
HEIGHT = 48
#: Pictures are filled up to a multiple of this many pixels.
STEP = 64
_WIDEST = 320
#: One line in so many is a code of letters and digits instead of words.
_CODES = 5
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-./:#"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of text.

    Attributes:
        text: What it says.
        picture: float32 [1, 3, 48, width], from -1 to 1.
    """

    text: str
    picture: NDArray[np.float32]


def lines(file: Path, numbers: range) -> Iterator[Line]:
    """Render lines from ``movie_sentences.npz``; a number always gives the same line.

    Even numbers take words from the first half of the sentences, odd ones from the second.
    """
    with np.load(file) as arrays:
        texts = [str(text) for text in arrays["text"]]
    fonts = sorted(FONTS.glob("DejaVu*.ttf"))
    for number in numbers:
        generator = random.Random(number)
        font = _font(fonts[generator.randrange(len(fonts))], generator.randint(24, 36))
        half = texts[number % 2 :: 2]
        text = _fitting(_text(half, number, generator), font)
        yield Line(text, _picture(text, font, generator))


def read(session: Any, picture: NDArray[np.float32]) -> str:
    """What a model reads: the likeliest class at each position, repetitions and blanks left out."""
    characters = session.get_modelmeta().custom_metadata_map["character"].split("\n")
    (chances,) = session.run(None, {session.get_inputs()[0].name: picture})
    classes = chances[0].argmax(axis=1)
    kept = [each for each, _ in itertools.groupby(classes.tolist()) if each]
    return "".join(characters[each - 1] if each <= len(characters) else " " for each in kept)


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's: the least number of characters to put in, leave out or replace."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], number
        for place, wanted in enumerate(other, 1):
            cost = diagonal + (letter != wanted)
            diagonal = row[place]
            row[place] = min(row[place] + 1, row[place - 1] + 1, cost)
    return row[-1]


def _text(texts: list[str], number: int, generator: random.Random) -> str:
    if number % _CODES == 0:
        return "".join(generator.choices(_LETTERS, k=generator.randint(6, 18)))
    words = generator.choice(texts).split()
    start = generator.randrange(max(1, len(words) - 3))
    return " ".join(words[start : start + generator.randint(2, 6)])


def _font(path: Path, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(path), size)


def _fitting(text: str, font: Any) -> str:
    while len(text) > 1 and font.getlength(text) > _WIDEST - 24:
        text = text[:-1].rstrip()
    return text


def _picture(text: str, font: Any, generator: random.Random) -> NDArray[np.float32]:
    """Dark on light or light on dark, slightly moved, with noise."""
    from PIL import Image, ImageDraw

    width = -(-(int(font.getlength(text)) + 24) // STEP) * STEP
    light = tuple(generator.randint(180, 255) for _ in range(3))
    dark = tuple(generator.randint(0, 75) for _ in range(3))
    paper, ink = (dark, light) if generator.random() < 0.2 else (light, dark)
    image = Image.new("RGB", (width, HEIGHT), paper)
    place = generator.randint(6, 18), HEIGHT // 2 + generator.randint(-3, 3)
    ImageDraw.Draw(image).text(place, text, fill=ink, font=font, anchor="lm")
    noise = np.random.default_rng(generator.randrange(2**32))
    pixels = np.asarray(image) + noise.normal(0, generator.uniform(0, 12), (HEIGHT, width, 3))
    scaled = (np.clip(pixels, 0, 255) / 255 - 0.5) / 0.5
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)
