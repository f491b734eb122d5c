"""Run the benchmarks, ours beside each peer, and write docs/benchmarks.md from their results.

Usage::

    python -m benchmarks.run DATA                              # everything that is missing
    python -m benchmarks.run --list                            # the parts, and how long they take
    python -m benchmarks.run --models ocr-det --tools onnxopt  # one model, one tool
    python -m benchmarks.run --parts storage importer --fresh  # these all over again
    python -m benchmarks.run --page                            # only the pages

DATA is the folder of samples that `benchmarks.quantization_data` reads; parts that need it are left
out without it, which is said. Each part is a command of its own that can be run alone, keeps its
results after each measurement in ``benchmarks/results/``, and does not measure again what is there:
after an interruption, run the same again. A part that fails stops no other.

Parts that are about time run alone. Those that are about accuracy run two at a time afterwards,
each on a core of its own.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import importlib
import os
import pathlib
import queue
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks import page, plots, quoted
from benchmarks.results import Results

__all__ = ["PARTS", "Part", "commands", "main"]


@dataclasses.dataclass(frozen=True)
class Part:
    """One benchmark.

    Attributes:
        name: What it is called; parts of one benchmark share what stands before the hyphen.
        module: The module whose command it is.
        minutes: About what it takes on two cores when nothing is there yet.
        arguments: What the command is told, where DATA stands for the folder of samples.
        models: Models that can be chosen with ``--models``; without any there is no such option.
        tools: Tools that can be chosen with ``--tools``; likewise.
        only: The one model that it is about.
        fresh: Whether the command has ``--fresh``.
        timed: Whether it needs the machine for itself.
    """

    name: str
    module: str
    minutes: int
    arguments: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    only: str = ""
    fresh: bool = True
    timed: bool = True

    @property
    def needs_data(self) -> bool:
        """Whether it needs samples."""
        return "DATA" in self.arguments


_OCR = ("ocr-det", "ocr-rec", "ocr-cls")
_REAL = ("lite0-bn", "lite0-folded", "minilm", *_OCR, "silero-vad", "digits")
_QUANTIZERS = ("ort-minmax", "ort-entropy", "ort-percentile", "ort-dynamic")
_SIMPLIFIERS = ("onnxopt", "onnxsim", "onnxslim", "onnxscript")
_ONESHOT = ("lite0-folded", "minilm", "ocr-rec")
_SPARSIFIERS = (
    "onnxopt magnitude",
    "onnxopt wanda",
    "onnxopt obs",
    "onnxopt obs, LAMP",
    "onnxopt obs, measured",
    "onnxsim magnitude",
    "onnxsim Wanda",
    "onnxsim SparseGPT",
)

PARTS = (
    Part("demo", "benchmarks.demo", 1),
    Part(
        "simplification",
        "benchmarks.simplification",
        14,
        models=(*_REAL, "chain-1000", "chain-5000", "chain-20000", "transformer-1.2gb"),
        tools=_SIMPLIFIERS,
    ),
    Part(
        "quantization",
        "benchmarks.quantization",
        17,
        ("DATA",),
        models=tuple(name for name in _REAL if name != "lite0-bn"),
        tools=("onnxopt", "onnxopt-exact", *_QUANTIZERS),
    ),
    *(
        Part(
            f"sparsity-{name}",
            "benchmarks.sparsity",
            minutes,
            ("DATA", "--models", name),
            tools=_SPARSIFIERS,
            only=name,
            timed=False,
        )
        for name, minutes in (("lite0-folded", 10), ("minilm", 40))
    ),
    Part(
        "storage",
        "benchmarks.storage",
        10,
        models=("lite0-folded", "minilm", "fashion-mnist", "matmul-1024"),
    ),
    Part(
        "saturation",
        "benchmarks.saturation",
        8,
        ("DATA",),
        models=("fashion-mnist", "digits", "ocr-cls", "lite0-folded"),
        timed=False,
    ),
    Part("channels-exact", "benchmarks.channels", 1, ("exact",), timed=False),
    Part("channels-gain", "benchmarks.channels", 2, ("gain",)),
    Part("channels-widths", "benchmarks.channels", 1, ("widths",)),
    *(
        Part(
            f"channels-oneshot-{name}",
            "benchmarks.channels",
            6,
            ("oneshot", "--model", name, "--data", "DATA"),
            only=name,
            timed=False,
        )
        for name in _ONESHOT
    ),
    Part(
        "channels-oneshot-torch-pruning",
        "benchmarks.torch_pruning_peer",
        2,
        ("DATA",),
        only="lite0-folded",
        timed=False,
    ),
    Part(
        "ablation",
        "benchmarks.ablation",
        28,
        ("DATA",),
        only="fashion_mnist",
        fresh=False,
        timed=False,
    ),
    Part(
        "importer",
        "benchmarks.importer",
        8,
        models=(*_REAL, "fashion_mnist"),
        tools=("onnxopt", "onnx2torch", "onnx2pytorch"),
    ),
    *(
        Part(
            f"calibration-{what}",
            "benchmarks.calibration",
            minutes,
            ("DATA", what),
            only="lite0-folded",
            fresh=False,
            timed=what != "fidelity",
        )
        for what, minutes in (("cost", 3), ("pace", 1), ("fidelity", 3))
    ),
    Part(
        "scaling",
        "benchmarks.scaling",
        6,
        models=("digits", "lite0-folded", "minilm", "ocr-cls", "ocr-rec", "ocr-det"),
    ),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", nargs="?", type=pathlib.Path, help="folder of the samples")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="parts, or how they begin")
    parser.add_argument("--models", nargs="+", default=(), metavar="NAME")
    parser.add_argument("--tools", nargs="+", default=(), metavar="NAME")
    parser.add_argument("--fresh", action="store_true", help="measure chosen rows again")
    parser.add_argument("--list", action="store_true", help="say what there is, measure nothing")
    parser.add_argument("--page", action="store_true", help="write the pages, measure nothing")
    chosen = parser.parse_args(arguments)
    parts = [
        part
        for part in PARTS
        if chosen.parts is None or any(part.name.startswith(each) for each in chosen.parts)
    ]
    if not parts:
        parser.error(f"no such part; there are {', '.join(part.name for part in PARTS)}")
    if chosen.list:
        for part in parts:
            needs = "needs DATA" if part.needs_data else ""
            how = "alone" if part.timed else "beside another"
            print(f"{part.name:32} {part.minutes:3} min  {how:15} {needs}".rstrip())
        print(f"{'together':32} {_together(parts):3} min")
        return
    failed: list[str] = []
    if not chosen.page:
        waiting = []
        for part, command in commands(
            parts, chosen.data, chosen.models, chosen.tools, chosen.fresh
        ):
            if command is None:
                print(f"{part.name}: left out, since it needs the folder of samples", flush=True)
            else:
                waiting.append((part, command))
        failed = _run_all(waiting)
    _write_pages()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the other parts are done")


def commands(
    parts: Sequence[Part],
    data: pathlib.Path | None,
    models: Sequence[str],
    tools: Sequence[str],
    fresh: bool,
) -> list[tuple[Part, list[str] | None]]:
    """The command of each part that has something of what was chosen; None where data is missing.

    Args:
        parts: The parts.
        data: Folder of samples.
        models: Chosen models; all if empty.
        tools: Chosen tools; all if empty.
        fresh: Measure again what is there.
    """
    found: list[tuple[Part, list[str] | None]] = []
    for part in parts:
        options: list[str] = []
        for option, wanted, known in (
            ("--models", models, part.models or tuple(filter(None, (part.only,)))),
            ("--tools", tools, part.tools),
        ):
            own = [each for each in wanted if each in known]
            if wanted and not own:
                break
            if wanted and not (option == "--models" and part.only):
                options += [option, *own]
        else:
            if part.needs_data and data is None:
                found.append((part, None))
                continue
            given = [str(data) if each == "DATA" else each for each in part.arguments]
            options += ["--fresh"] if fresh and part.fresh else []
            found.append((part, [sys.executable, "-m", part.module, *given, *options]))
    return found


def _run_all(waiting: Sequence[tuple[Part, list[str]]]) -> list[str]:
    """Run parts, those alone that are timed; the names of those that failed."""
    outcomes = {part.name: _run(part, command) for part, command in waiting if part.timed}
    lanes: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in _lanes():
        lanes.put(core)

    def beside(part: Part, command: list[str]) -> bool:
        core = lanes.get()
        try:
            return _run(part, command, core)
        finally:
            lanes.put(core)

    with concurrent.futures.ThreadPoolExecutor(len(_lanes())) as pool:
        futures = {
            part.name: pool.submit(beside, part, command)
            for part, command in _longest_first(waiting)
        }
        outcomes |= {name: future.result() for name, future in futures.items()}
    return [part.name for part, _ in waiting if not outcomes[part.name]]


def _longest_first(waiting: Sequence[tuple[Part, list[str]]]) -> list[tuple[Part, list[str]]]:
    """Those that are not timed, so that both cores have work to the end."""
    return sorted(
        (each for each in waiting if not each[0].timed), key=lambda each: -each[0].minutes
    )


def _lanes() -> list[int]:
    """Cores on which parts run beside one another; no more than two, for memory's sake."""
    return sorted(os.sched_getaffinity(0))[:2]


def _together(parts: Sequence[Part]) -> int:
    """Minutes that parts take on two cores."""
    ends = [0, 0]
    for part, _ in _longest_first([(part, []) for part in parts]):
        ends[ends.index(min(ends))] += part.minutes
    return sum(part.minutes for part in parts if part.timed) + max(ends)


def _run(part: Part, command: list[str], core: int | None = None) -> bool:
    """Run a part, on one core or wherever it likes; whether it did not fail."""
    if core is not None:
        command = [sys.executable, "-c", _ON_A_CORE, str(core), *command]
    print(f"{part.name}: {shlex.join(command[1:] if core is None else command[5:])}", flush=True)
    start = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    words = "done" if code == 0 else f"failed (exit code {code})"
    print(f"{part.name}: {words} in {time.perf_counter() - start:.0f} s", flush=True)
    return code == 0


#: What a part starts stays on its core, too.
_ON_A_CORE = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.execv(sys.argv[2], sys.argv[2:])
"""


def _write_pages() -> None:
    """Everything that is made from results alone."""
    for module in (
        "sparsity_page",
        "storage_page",
        "calibration_page",
        "scaling_page",
        "saturation_page",
    ):
        results = Results(module.removesuffix("_page"))
        if results:
            importlib.import_module(f"benchmarks.{module}").write(results)
    plots.write()
    page.write(Results("simplification"))
    quoted.write()


if __name__ == "__main__":
    main()
