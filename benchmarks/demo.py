"""What `make demo` prints, which README shows.

Usage::

    python -m benchmarks.demo            # if it is not there yet
    python -m benchmarks.demo --fresh    # again
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from benchmarks.results import Results

__all__ = ["main"]

_ROOT = pathlib.Path(__file__).parents[1]
_MODEL = pathlib.Path("models/fashion_mnist/fashion_mnist.onnx")
_COLUMNS = 100
_PERCENT = re.compile(r"accuracy ([\d.]+)%")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--fresh", action="store_true", help="run it again")
    fresh = parser.parse_args(arguments).fresh
    results = Results("demo")
    if fresh or "fashion-mnist" not in results:
        results["fashion-mnist"] = _run()


def _run() -> dict[str, object]:
    """What the two commands print; the accuracies in percent, before and after."""
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        out = pathlib.Path(folder) / _MODEL.name
        calibration = _MODEL.with_name("calibration.npz")
        report = out.with_name("report.json")
        options = ("--data", calibration, "--report", report)
        printed = _output("-m", "onnxopt", "optimize", _MODEL, out, *options)
        scores = _output(_MODEL.with_name("evaluate.py"), _MODEL, out)
        shown = printed.replace(str(out), f"demo-output/{out.name}")
    lines = [line.rstrip() for line in shown.strip().splitlines()]
    return {"printed": lines, "accuracy": [float(each) for each in _PERCENT.findall(scores)]}


def _output(*command: str | pathlib.Path) -> str:
    environment = {**os.environ, "COLUMNS": str(_COLUMNS), "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=_ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


if __name__ == "__main__":
    main()
