"""What the user fixes of made-up feeds."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from onnxopt.data import (
    FeedRequest,
    FeedSource,
    input_named,
    value_from_text,
)
from onnxopt.errors import FeedError
from tests.data.feeding import made_up, signature


class TestRequests:
    _TEXT = "g (float[N, C, L] x, float[N] s, int64 rate) => (y) { y = Relu(x) }"

    def test_shapes_and_values(self) -> None:
        request = FeedRequest({"rate": np.array(16000)}, {"x": (-1, 5, 7)})
        for feed in made_up(signature(self._TEXT), request):
            assert feed["rate"] == 16000
            assert feed["x"].shape[1:] == (5, 7)
            assert feed["x"].shape[0] == feed["s"].shape[0]

    def test_a_fixed_symbol_holds_everywhere(self) -> None:
        for feed in made_up(signature(self._TEXT), FeedRequest(shapes={"x": (4, 5, 7)})):
            assert feed["s"].shape == (4,)
        request = FeedRequest(values={"s": np.zeros(6, np.float32)})
        for feed in made_up(signature(self._TEXT), request):
            assert feed["x"].shape[0] == 6

    def test_seeds(self) -> None:
        request = FeedRequest(seeds=(0, 1, 2), shapes={"x": (1, 2, 3)})
        assert len(made_up(signature(self._TEXT), request)) == 3

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            (FeedRequest(shapes={"xx": (1,)}), "no input 'xx'; did you mean 'x'"),
            (FeedRequest(values={"rat": np.array(1)}), "no input 'rat'; did you mean 'rate'"),
            (FeedRequest(shapes={"x": (1, 2)}), "'x' has 3 dimensions .*, not 2"),
        ],
    )
    def test_errors(self, request_: FeedRequest, message: str) -> None:
        with pytest.raises(FeedError, match=message):
            FeedSource(signature(self._TEXT), None, request_)


class TestText:
    @pytest.mark.parametrize(
        ("kind", "text", "expected"),
        [
            ("int64", "16000", np.array(16000)),
            ("float[3]", "1,2.5,-1e-3", np.array([1, 2.5, -1e-3], np.float32)),
            ("float[2, 2]", "1,2,3,4", np.array([[1, 2], [3, 4]], np.float32)),
            ("float[2, 2]", "7", np.full((2, 2), 7, np.float32)),
            ("int32[N]", "4,5", np.array([4, 5], np.int32)),
            ("float[N, 3]", "1,2,3", np.array([[1, 2, 3]], np.float32)),
            ("bool", "1", np.array(True)),
        ],
    )
    def test_numbers(self, kind: str, text: str, expected: np.ndarray) -> None:
        model = signature(f"g ({kind} x) => (y) {{ y = Identity(x) }}")
        value = value_from_text(text, input_named(model, "x"))
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)

    def test_files(self, tmp_path: pathlib.Path) -> None:
        np.save(tmp_path / "x.npy", np.ones((2, 2)))
        model = signature("g (float[2, 2] x) => (y) { y = Identity(x) }")
        value = value_from_text(str(tmp_path / "x.npy"), input_named(model, "x"))
        assert value.dtype == np.float32
        with pytest.raises(FeedError, match="not a readable"):
            value_from_text(str(tmp_path / "none.npy"), input_named(model, "x"))

    @pytest.mark.parametrize(
        ("text", "message"), [("a,b", "is not a value for input 'x'"), ("1,2,3", "has 3 numbers")]
    )
    def test_errors(self, text: str, message: str) -> None:
        model = signature("g (float[2, 2] x) => (y) { y = Identity(x) }")
        with pytest.raises(FeedError, match=message):
            value_from_text(text, input_named(model, "x"))
