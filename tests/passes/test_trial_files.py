"""Variants of a model as files, and whose kernels are whose."""

import numpy as np
import onnx
import pytest
from onnxopt.passes.shared.trial_files import TrialFiles, owner_by_name

from onnxopt.model import from_proto
from tests.differential import assert_same, parse, run


@pytest.mark.parametrize(
    ("kernel", "owner"),
    [
        ("/a/MatMul", "a"),
        ("/a/MatMul_token_7", "a"),
        ("fused /a/MatMul", "a"),
        ("/a/MatMul_1", "b"),
        ("/c", None),
        ("", None),
    ],
)
def test_the_longest_name_that_a_kernel_begins_with_owns_it(kernel: str, owner: str | None) -> None:
    assert owner_by_name(kernel, {"/a/MatMul": "a", "/a/MatMul_1": "b"}) == owner


def test_a_variant_counts_its_weights_and_goes_with_its_context() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = parse("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }", {"w": weights})
    files = TrialFiles(from_proto(model))
    try:
        size = files.size(files.base)
        assert weights.nbytes < size < weights.nbytes + 1000
        with files.saved(files.base) as path:
            feed = {"x": np.ones((2, 64), np.float32)}
            assert path.stat().st_size < 1000  # the weights are in the file of the original
            assert_same(run(model, feed), run(onnx.load(path), feed))
        assert not path.exists()
    finally:
        files.close()
