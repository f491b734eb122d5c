"""Short names for what is called after something else.

Exporters of some frameworks name a node after its whole way through the code, 300 characters and
more. What is put in beside such a node repeats its name several times over, so that a single
QuantizeLinear weighs a kilobyte.
"""

from __future__ import annotations

import re
import zlib

__all__ = ["short_name"]

#: Names up to so many characters are short; of longer ones at most so many of the end are kept.
_SHORT, _END = 48, 24
_SEPARATOR = re.compile(r"[/;:.]+")


def short_name(name: str) -> str:
    """A name itself if it is short, else its end and a checksum of the whole.

    The same for the same name at all times, so that what is called after it can be found again.
    """
    if len(name) <= _SHORT:
        return name
    end = name[-_END:]
    words = _SEPARATOR.split(end, maxsplit=1)  # the first one is cut somewhere in its midst
    if len(words) == 2 and words[1]:
        end = words[1]
    return f"{end}_{zlib.crc32(name.encode()):08x}"
