"""A sample as a small picture, where it is one."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["picture"]

#: Longest side in pixels.
_SIDE = 160


def picture(sample: NDArray[Any], colours: int | None) -> str:
    """A sample as a PNG in a data URI; empty where it is no image.

    The smallest number is black and the largest white, whatever the model's scaling.

    Args:
        sample: One sample, with a leading axis of length 1.
        colours: Axis of colours in the sample without that axis.
    """
    if colours is None:
        return ""
    from PIL import Image

    pixels = np.moveaxis(sample[0].astype(np.float64), colours, -1)
    pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
    low, high = float(pixels.min()), float(pixels.max())
    scaled = (255 * (pixels - low) / (high - low) if high > low else 0 * pixels).astype(np.uint8)
    image = Image.fromarray(scaled if scaled.shape[-1] == 3 else scaled[..., 0])
    image.thumbnail((_SIDE, _SIDE))
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
