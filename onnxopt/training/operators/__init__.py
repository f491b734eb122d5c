"""How each operator runs in PyTorch: one builder an operator, by the name of the operator."""

from __future__ import annotations

from onnxopt.training.node_view import Builder
from onnxopt.training.operators.activations import BUILDERS as ACTIVATIONS
from onnxopt.training.operators.arithmetic import BUILDERS as ARITHMETIC
from onnxopt.training.operators.attention import BUILDERS as ATTENTION
from onnxopt.training.operators.convolution import BUILDERS as CONVOLUTION
from onnxopt.training.operators.host import HOST_BUILDERS
from onnxopt.training.operators.indexing import BUILDERS as INDEXING
from onnxopt.training.operators.movement import BUILDERS as MOVEMENT
from onnxopt.training.operators.normalization import BUILDERS as NORMALIZATION
from onnxopt.training.operators.pooling import BUILDERS as POOLING
from onnxopt.training.operators.products import BUILDERS as PRODUCTS
from onnxopt.training.operators.quantization import BUILDERS as QUANTIZATION
from onnxopt.training.operators.recurrent import BUILDERS as RECURRENT
from onnxopt.training.operators.reduction import BUILDERS as REDUCTION
from onnxopt.training.operators.resizing import BUILDERS as RESIZING
from onnxopt.training.operators.sampling import BUILDERS as SAMPLING
from onnxopt.training.operators.shapes import BUILDERS as SHAPES
from onnxopt.training.operators.shapes import SIZES

__all__ = ["BUILDERS", "HOST_BUILDERS", "SIZES"]

#: Operators on tensors.
BUILDERS: dict[str, Builder] = {
    **ACTIVATIONS,
    **ARITHMETIC,
    **ATTENTION,
    **CONVOLUTION,
    **INDEXING,
    **MOVEMENT,
    **NORMALIZATION,
    **POOLING,
    **PRODUCTS,
    **QUANTIZATION,
    **RECURRENT,
    **REDUCTION,
    **RESIZING,
    **SAMPLING,
    **SHAPES,
}
