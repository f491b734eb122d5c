"""Recurrent layers as they stand in a graph."""

import numpy as np

from onnxopt.model import from_proto
from onnxopt.regions import Recurrence, recurrences
from tests.differential import parse


def test_weights_are_turned_as_the_kernel_takes_them() -> None:
    weights = np.arange(2 * 8 * 3, dtype=np.float32).reshape(2, 8, 3)
    states = np.arange(2 * 8 * 2, dtype=np.float32).reshape(2, 8, 2)
    model = parse(
        """g (float[T, B, 3] x) => (float[D, B, 2] h) {
            , h = LSTM<hidden_size=2, direction="bidirectional">(x, w, r)
        }""",
        {"w": weights, "r": states},
    )
    (found,) = recurrences(from_proto(model).graph)
    assert isinstance(found, Recurrence)
    assert found.key == "h"  # the first output that is there
    np.testing.assert_array_equal(found.inputs, weights.transpose(0, 2, 1))
    np.testing.assert_array_equal(found.states, states.transpose(0, 2, 1))
    assert found.weight_count == weights.size + states.size


def test_recurrent_layers_of_other_domains_are_none() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[T, B, 3] x) => (float[T, B, 2] y) { y = own.LSTM(x) }"""
    )
    assert list(recurrences(from_proto(model).graph)) == []
