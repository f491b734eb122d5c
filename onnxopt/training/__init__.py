"""PyTorch: import of models, and what is done with them there (extra ``train``)."""

from __future__ import annotations

from onnxopt.errors import OptionError

try:
    import torch  # noqa: F401 - so that the reason is told here, once
except ImportError as error:
    raise OptionError(
        "training needs PyTorch, which is not installed: pip install 'onnxopt[train]'"
    ) from error

from onnxopt.training.importer import import_model
from onnxopt.training.module import OnnxModule
from onnxopt.training.write_back import write_back, write_back_file

__all__ = ["OnnxModule", "import_model", "write_back", "write_back_file"]
