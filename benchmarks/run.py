"""Run the benchmarks and write docs/benchmarks.md from their results.

Usage::

    python -m benchmarks.run                                   # everything that is missing
    python -m benchmarks.run --models ocr-det --tools onnxopt  # one model, one tool
    python -m benchmarks.run --fresh                           # all over again
    python -m benchmarks.run --page                            # only the page
"""

from __future__ import annotations

import argparse

from benchmarks import page, simplification
from benchmarks.peers import TOOLS
from benchmarks.results import Results

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    everything = (*simplification.REAL_MODELS, *simplification.SCALING_MODELS)
    parser.add_argument("--models", nargs="+", default=everything, metavar="NAME")
    parser.add_argument("--tools", nargs="+", default=tuple(TOOLS), choices=tuple(TOOLS))
    parser.add_argument("--fresh", action="store_true", help="measure chosen rows again")
    parser.add_argument("--page", action="store_true", help="write the page and measure nothing")
    chosen = parser.parse_args(arguments)
    results = Results("simplification")
    if not chosen.page:
        if chosen.fresh:
            for key in [f"{model}/{tool}" for model in chosen.models for tool in chosen.tools]:
                results.pop(key, None)
        simplification.run(results, chosen.models, chosen.tools)
    page.write(results)


if __name__ == "__main__":
    main()
