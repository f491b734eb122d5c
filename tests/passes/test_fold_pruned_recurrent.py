"""fold-pruned-channels on LSTM, GRU and RNN: units that nothing reads, or that stay at 0."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.differential import optimize, parse, run
from tests.passes.pruning import PASS, folded, normal, refused, removed

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
#: The gate that makes the candidate for the new state.
CANDIDATE = {"LSTM": 3, "GRU": 2, "RNN": 0}
UNITS, INPUTS, DIRECTIONS = 8, 6, {"forward": 1, "bidirectional": 2}
FEEDS = ({"x": normal(5, 2, 3)}, {"x": normal(7, 1, 3)})


def weights(operator: str, direction: str, seed: int = 0) -> dict[str, np.ndarray]:
    gates, count = GATES[operator], DIRECTIONS[direction]
    return {
        "w0": normal(3, INPUTS),
        "b0": normal(INPUTS),
        "w": normal(count, gates * UNITS, INPUTS, seed=seed) * np.float32(0.5),
        "r": normal(count, gates * UNITS, UNITS, seed=seed) * np.float32(0.5),
        "b": normal(count, 2 * gates * UNITS, seed=seed),
        "v": normal(count * UNITS, 4),
        "c": normal(4),
        "z": np.array([0, 0, -1], np.int64),
    }


def model(
    operator: str,
    arrays: dict[str, np.ndarray],
    direction: str = "forward",
    tail: str = "h",
    attributes: str = "",
) -> onnx.ModelProto:
    """A product, a recurrent layer, and a product over its units."""
    if tail == "h":
        rest = "t = Transpose <perm = [0, 2, 1, 3]> (h)  s = Reshape(t, z)"
    else:  # the last state
        rest = "t = Transpose <perm = [1, 0, 2]> (hn)  s = Reshape(t, z)"
        arrays = {**arrays, "z": np.array([0, -1], np.int64)}
    given = f'hidden_size = {UNITS}, direction = "{direction}"{attributes}'
    rank = "p, q, u" if tail == "h" else "p, u"
    text = f"""g (float[l, n, 3] x) => (float[{rank}] y) {{
        a0 = MatMul(x, w0)  a1 = Add(a0, b0)  a = Sigmoid(a1)
        h, hn = {operator} <{given}> (a, w, r, b)
        {rest}  m = MatMul(s, v)  y = Add(m, c)
    }}"""
    return parse(text, arrays)


def silence(arrays: dict[str, np.ndarray], operator: str, places: list[int]) -> None:
    """Let some units stay at 0."""
    gates = GATES[operator]
    for name in ("w", "r", "b"):
        array = arrays[name]
        halves = 2 if name == "b" else 1
        parted = array.reshape(array.shape[0], halves, gates, UNITS, -1)
        parted[:, :, CANDIDATE[operator], places] = 0


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("tail", ["h", "hn"])
def test_units_that_nothing_reads(operator: str, direction: str, tail: str) -> None:
    arrays = weights(operator, direction)
    count = DIRECTIONS[direction]
    arrays["v"].reshape(count, UNITS, 4)[:, [1, 4, 6]] = 0
    # The others do not read two of the three, which read one another.
    for place in (1, 4):
        arrays["r"][
            :, [row for row in range(arrays["r"].shape[1]) if row % UNITS not in (1, 4)], place
        ] = 0
    made = model(operator, arrays, direction, tail)
    optimized = folded(made, 2 * count, *FEEDS)
    assert optimized.graph.initializers["r"].shape == (count, GATES[operator] * 6, 6)
    assert optimized.graph.initializers["w"].shape == (count, GATES[operator] * 6, INPUTS)
    assert optimized.graph.initializers["v"].shape == (count * 6, 4)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("operator", GATES)
def test_units_that_stay_at_zero(operator: str, direction: str) -> None:
    arrays = weights(operator, direction)
    silence(arrays, operator, [0, 5])
    count = DIRECTIONS[direction]
    made = model(operator, arrays, direction)
    feed = FEEDS[0]
    assert np.abs(run(made, feed)[0]).max() > 0
    # Units of 0 add nothing to the gates of others, whatever the weights on them are.
    arrays["r"][:, :, [0, 5]] = 0
    folded(model(operator, arrays, direction), 2 * count, *FEEDS)


@pytest.mark.parametrize("operator", GATES)
def test_units_that_do_not(operator: str) -> None:
    arrays = weights(operator, "forward")
    silence(arrays, operator, [0, 5])
    arrays["r"][:, :, [0, 5]] = 0
    bias = arrays["b"].reshape(1, 2, GATES[operator], UNITS)
    bias[:, 1, CANDIDATE[operator], 5] = 0.5
    folded(model(operator, arrays), 1, *FEEDS)


def test_channels_that_a_cell_does_not_read() -> None:
    arrays = weights("LSTM", "forward")
    arrays["w"][:, :, [2, 3]] = 0
    optimized = folded(model("LSTM", arrays), 2, *FEEDS)
    assert optimized.graph.initializers["w"].shape == (1, 4 * UNITS, INPUTS - 2)
    assert optimized.graph.initializers["w0"].shape == (3, INPUTS - 2)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("biased", [True, False])
def test_inputs_that_are_constant(operator: str, direction: str, biased: bool) -> None:
    arrays = weights(operator, direction)
    arrays["w0"][:, [1, 2, 5]] = 0  # the bias is left, and what Sigmoid makes of it
    # A unit that nothing reads goes along.
    arrays["v"].reshape(-1, UNITS, 4)[:, 3] = 0
    arrays["r"][:, [row for row in range(arrays["r"].shape[1]) if row % UNITS != 3], 3] = 0
    made = model(operator, arrays, direction)
    if not biased:
        cell = next(node for node in made.graph.node if node.op_type == operator)
        del cell.input[3]
        given = [each for each in made.graph.initializer if each.name != "b"]
        del made.graph.initializer[:]
        made.graph.initializer.extend(given)
    count = DIRECTIONS[direction]
    optimized = folded(made, 3 + count, *FEEDS)
    shapes = {name: each.shape for name, each in optimized.graph.initializers.items()}
    gates = GATES[operator] * (UNITS - 1)
    assert shapes["w"] == (count, gates, INPUTS - 3)
    assert shapes["w0"] == (3, INPUTS - 3)
    assert (count, 2 * gates) in shapes.values()


@pytest.mark.parametrize("before", [0, 1])
def test_constant_inputs_of_a_gru_that_resets_before_or_after(before: int) -> None:
    arrays = weights("GRU", "bidirectional")
    arrays["w0"][:, [1, 2, 5]] = 0
    attributes = f", linear_before_reset = {before}"
    folded(model("GRU", arrays, "bidirectional", attributes=attributes), 3, *FEEDS)


def test_constant_inputs_out_of_range() -> None:
    arrays = weights("LSTM", "forward")
    arrays["w0"][:, [1, 2]] = 0
    arrays["w"][:, :, 1] = 3e38
    arrays["b"][:] = 3e38
    made = model("LSTM", arrays)
    assert removed(made) == 0
    assert "its constant is out of range" in refused(made)


def test_constant_inputs_of_cells_with_one_unit() -> None:
    arrays = {
        "w0": normal(3, INPUTS),
        "b0": normal(INPUTS),
        "w": normal(2, 4, INPUTS),
        "r": normal(2, 4, 1),
    }
    arrays["w0"][:, [0, 4]] = 0
    text = """g (float[l, n, 3] x) => (float[p, d, q, u] y) {
        a0 = MatMul(x, w0)  a1 = Add(a0, b0)  a = Sigmoid(a1)
        y = LSTM <hidden_size = 1, direction = "bidirectional"> (a, w, r)
    }"""
    optimized = folded(parse(text, arrays), 2, *FEEDS)
    assert optimized.graph.initializers["w"].shape == (2, 4, INPUTS - 2)


def test_state_from_outside() -> None:
    arrays = weights("GRU", "forward")
    arrays["v"][[1, 4]] = 0
    text = f"""g (float[l, n, 3] x, float[1, n, {UNITS}] h0) => (float[p, q, u] y) {{
        a0 = MatMul(x, w0)  a = Add(a0, b0)
        h, hn = GRU <hidden_size = {UNITS}> (a, w, r, b, , h0)
        t = Transpose <perm = [0, 2, 1, 3]> (h)  s = Reshape(t, z)  m = MatMul(s, v)  y = Add(m, c)
    }}"""
    made = parse(text, arrays)
    assert removed(made) == 0
    assert any("state or bias" in each for each in refused(made)) or not refused(made)


def test_other_activations_make_no_zeros() -> None:
    arrays = weights("RNN", "forward")
    silence(arrays, "RNN", [0, 5])
    arrays["r"][:, :, [0, 5]] = 0
    assert removed(model("RNN", arrays, attributes=', activations = ["Sigmoid"]')) == 0


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(GATES)), st.sampled_from(sorted(DIRECTIONS)), st.integers(0, 9999))
def test_random_cells(operator: str, direction: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = weights(operator, direction, seed)
    dead = rng.random(UNITS) < 0.5
    if rng.random() < 0.6:
        silence(arrays, operator, np.flatnonzero(dead).tolist())
    if rng.random() < 0.6:
        arrays["r"][:, :, dead & (rng.random(UNITS) < 0.8)] = 0
    if rng.random() < 0.6:
        arrays["v"].reshape(-1, UNITS, 4)[:, rng.random(UNITS) < 0.5] = 0
    arrays["w"][:, :, rng.random(INPUTS) < 0.3] = 0
    arrays["w0"][:, rng.random(INPUTS) < 0.4] = 0
    optimize(model(operator, arrays, direction, rng.choice(["h", "hn"])), PASS, *FEEDS)
