"""The rewrites of onnxopt. One pass, one file.

`PASSES` is the table that the engine finds through the entry-point group ``onnxopt.passes``: name
to class, imported when first asked for. Adding a pass is a file and a line here.
`PIPELINES` names whole pipelines (group ``onnxopt.pipelines``).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

import onnx_ir as ir

__all__ = ["PASSES", "PIPELINES"]

#: Name of each pass, and the module and class that implement it.
_LOCATIONS = {
    "infer-shapes": "infer_shapes:InferShapes",
    "inline-functions": "inline_functions:InlineFunctions",
    "lift-constants": "lift_constants:LiftConstants",
    "fold-constants": "fold_constants:FoldConstants",
    "fold-shapes": "fold_shapes:FoldShapes",
    "resolve-control-flow": "resolve_control_flow:ResolveControlFlow",
    "simplify-loops": "simplify_loops:SimplifyLoops",
    "eliminate-identities": "eliminate_identities:EliminateIdentities",
    "eliminate-no-ops": "eliminate_no_ops:EliminateNoOps",
    "eliminate-common-subexpressions": (
        "eliminate_common_subexpressions:EliminateCommonSubexpressions"
    ),
    "deduplicate-initializers": "deduplicate_initializers:DeduplicateInitializers",
    "eliminate-dead-code": "eliminate_dead_code:EliminateDeadCode",
    "fuse-affine": "fuse_affine:FuseAffine",
    "fold-pruned-channels": "fold_pruned_channels:FoldPrunedChannels",
    "prune-channels": "prune_channels:PruneChannels",
    "affine-to-batch-norm": "affine_to_batch_norm:AffineToBatchNorm",
    "fuse-pad": "fuse_pad:FusePad",
    "fuse-matmul-add": "fuse_matmul_add:FuseMatMulAdd",
    "simplify-casts": "simplify_casts:SimplifyCasts",
    "simplify-clips": "simplify_clips:SimplifyClips",
    "merge-reshapes": "merge_reshapes:MergeReshapes",
    "merge-slices": "merge_slices:MergeSlices",
    "merge-concats": "merge_concats:MergeConcats",
    "simplify-transposes": "simplify_transposes:SimplifyTransposes",
    "push-transposes": "push_transposes:PushTransposes",
    "expand-activations": "expand_activations:ExpandActivations",
    "fuse-activations": "fuse_activations:FuseActivations",
    "fuse-gelu": "fuse_gelu:FuseGelu",
    "fuse-layer-norm": "fuse_layer_norm:FuseLayerNorm",
    "fuse-softmax": "fuse_softmax:FuseSoftmax",
    "smooth-activations": "smooth_activations:SmoothActivations",
    "palettize": "palettize:Palettize",
    "clip-weights": "clip_weights:ClipWeights",
    "sparsify": "sparsify:Sparsify",
    "quantize": "quantize:Quantize",
    "quantize-weights": "quantize_weights:QuantizeWeights",
    "shorten-names": "shorten_names:ShortenNames",
    "decode-weights": "decode_weights:DecodeWeights",
    "compact-weights": "compact_weights:CompactWeights",
}


class _LazyTable(Mapping[str, type[ir.passes.PassBase]]):
    """Imports a pass when it is asked for, so that a short pipeline starts quickly."""

    def __getitem__(self, name: str) -> type[ir.passes.PassBase]:
        module, _, attribute = _LOCATIONS[name].partition(":")
        found = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        assert isinstance(found, type)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_LOCATIONS)

    def __len__(self) -> int:
        return len(_LOCATIONS)


PASSES: Mapping[str, type[ir.passes.PassBase]] = _LazyTable()

#: ``exact`` is what `optimize` runs by default, round after round until nothing changes any more:
#: what makes the graph smaller first, then what needs shapes, then fusions, then what they leave.
_EXACT = """
inline-functions lift-constants resolve-control-flow simplify-loops eliminate-identities
fold-constants infer-shapes fold-shapes eliminate-no-ops eliminate-dead-code
simplify-casts merge-reshapes merge-slices merge-concats simplify-transposes push-transposes
deduplicate-initializers eliminate-common-subexpressions
simplify-clips fuse-activations fuse-gelu fuse-layer-norm fuse-softmax
fuse-pad fuse-matmul-add fuse-affine fold-pruned-channels affine-to-batch-norm
expand-activations
"""

#: What is stored compactly is made dense first, so that all passes see numbers, and compact again
#: at the end, so that nothing is lost by running `optimize` twice.
#: ``tuned`` is what it runs by default when it has samples to learn from.
#: ``compact`` makes the file small besides.
PIPELINES: Mapping[str, str] = {
    "exact": f"decode-weights,{','.join(_EXACT.split())},compact-weights{{only-again=true}}",
    "tuned": "exact,quantize",
    "compact": "exact,compact-weights",
}
