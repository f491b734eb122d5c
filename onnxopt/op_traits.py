"""One table of what the engine knows of an operator.

Passes ask here instead of keeping lists of their own, so that a fact about an operator is stated,
and mended, once. An operator that is not in the table has no traits: every question about it is
answered with the careful answer.
"""

from __future__ import annotations

import enum

import onnx_ir as ir

from onnxopt.traversal import all_nodes, bodies

__all__ = ["Trait", "has_trait", "is_deterministic", "is_standard", "traits_of"]


class Trait(enum.Flag):
    """A property of an operator of the standard domain (``ai.onnx``)."""

    NONE = 0
    #: The output depends on nothing but the inputs and attributes, and nothing else happens.
    PURE = enum.auto()
    #: The output differs from call to call; two such nodes are never the same.
    RANDOM = enum.auto()
    #: One tensor in, one out, each element by itself. Shape is kept.
    UNARY = enum.auto()
    #: Two or more tensors in, broadcast as numpy does, each element by itself.
    BROADCAST = enum.auto()
    #: f(0) = 0 in the first input.
    ZERO_PRESERVING = enum.auto()
    #: Moves or repeats elements and computes nothing.
    DATA_MOVEMENT = enum.auto()
    #: Axis 1 of the first input and the output is the channel axis.
    CHANNEL_AXIS_1 = enum.auto()
    #: Reads subgraphs; what it does depends on them.
    CONTROL_FLOW = enum.auto()
    #: QuantizeLinear and kin: the grid is information, never folded away.
    QUANTIZATION = enum.auto()
    #: f(f(x)) = f(x).
    IDEMPOTENT = enum.auto()


_PURE = Trait.PURE
_UNARY = Trait.PURE | Trait.UNARY
_UNARY_ZERO = _UNARY | Trait.ZERO_PRESERVING
_BROADCAST = Trait.PURE | Trait.BROADCAST
_MOVES = Trait.PURE | Trait.DATA_MOVEMENT
_CHANNEL = Trait.PURE | Trait.CHANNEL_AXIS_1


def _table() -> dict[str, Trait]:
    groups: dict[Trait, str] = {
        _UNARY_ZERO: """Neg Sin Tan Asin Atan Sinh Tanh Asinh Atanh Erf Sqrt Softsign Elu Selu
            LeakyRelu HardSwish Gelu Mish ThresholdedRelu Celu Swish""",
        _UNARY_ZERO | Trait.IDEMPOTENT: "Relu Abs Sign Floor Ceil Round Identity",
        _UNARY: """Exp Log Sigmoid HardSigmoid Softplus Reciprocal Cos Acos Cosh Acosh Not Cast
            BitwiseNot IsNaN IsInf Shrink CastLike""",
        _UNARY | Trait.IDEMPOTENT: "Clip",
        _BROADCAST: """Add Sub Mul Div Pow Mod Min Max Sum Mean And Or Xor Equal Less Greater
            LessOrEqual GreaterOrEqual Where BitShift BitwiseAnd BitwiseOr BitwiseXor PRelu""",
        _MOVES: """Reshape Transpose Flatten Squeeze Unsqueeze Expand Tile Slice Split Concat Gather
            GatherElements GatherND ScatterElements ScatterND Scatter Pad DepthToSpace SpaceToDepth
            ReverseSequence Compress Trilu CenterCropPad Upsample""",
        _CHANNEL: """Conv ConvTranspose BatchNormalization InstanceNormalization GroupNormalization
            MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool LRN Resize
            ConvInteger QLinearConv DeformConv MaxRoiPool MaxUnpool Col2Im""",
        _PURE: """MatMul Gemm MatMulInteger QLinearMatMul LayerNormalization RMSNormalization
            Softmax LogSoftmax Hardmax MeanVarianceNormalization LpNormalization
            ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum
            ReduceLogSumExp ReduceSumSquare ArgMax ArgMin TopK CumSum CumProd Einsum Det
            Shape Size Constant ConstantOfShape Range OneHot NonZero Unique EyeLike
            LSTM GRU RNN Attention RotaryEmbedding AffineGrid GridSample RoiAlign
            NonMaxSuppression StringNormalizer StringConcat StringSplit RegexFullMatch
            TfIdfVectorizer DFT STFT MelWeightMatrix HannWindow HammingWindow BlackmanWindow
            NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss BitCast TensorScatter
            SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
            ConcatFromSequence SplitToSequence Optional OptionalGetElement OptionalHasElement
            ImageDecoder""",
        _PURE | Trait.QUANTIZATION: "QuantizeLinear DequantizeLinear DynamicQuantizeLinear",
        Trait.RANDOM: """RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial
            Bernoulli""",
        Trait.CONTROL_FLOW: "If Loop Scan SequenceMap",
        # Random only when it trains, which is a question to the node: see is_deterministic.
        Trait.ZERO_PRESERVING: "Dropout",
    }
    return {op: traits for traits, ops in groups.items() for op in ops.split()}


_TRAITS = _table()


def is_standard(node: ir.Node) -> bool:
    """Whether the node is of the standard domain, where the table speaks."""
    return node.domain in ("", "ai.onnx")


def traits_of(node: ir.Node) -> Trait:
    """The traits of a node's operator; none for an unknown operator or another domain."""
    return _TRAITS.get(node.op_type, Trait.NONE) if is_standard(node) else Trait.NONE


def has_trait(node: ir.Node, trait: Trait) -> bool:
    """Whether the node's operator has all of the given traits."""
    return trait in traits_of(node)


def is_deterministic(node: ir.Node) -> bool:
    """Whether the node is known to give the same outputs for the same inputs, each time.

    False for random operators, for Dropout that may train (its ``training_mode`` input or the mode
    attributes of old opsets), for control flow with anything of the kind inside, and for operators
    the table does not know.
    """
    if not is_standard(node):
        return False
    if node.op_type == "Dropout":
        return not dropout_may_train(node)
    traits = traits_of(node)
    if Trait.CONTROL_FLOW in traits:
        return all(is_deterministic(inner) for body in bodies(node) for inner in all_nodes(body))
    return Trait.PURE in traits


def dropout_may_train(node: ir.Node) -> bool:
    """Whether a Dropout node can drop anything when it runs.

    From opset 12 on this is the third input: absent means inference. A constant False is inference
    too; anything else is only known when the model runs.
    """
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        mode = node.inputs[2].const_value
        return mode is None or node.inputs[2].is_graph_input() or bool(mode.numpy().any())
    is_test = node.attributes.get("is_test")  # opset 1 and 6; training by default
    version = node.version or (node.graph.opset_imports.get("", 0) if node.graph else 0)
    return 0 < version < 7 and (is_test is None or is_test.is_ref() or is_test.as_int() == 0)
