import numpy as np

from tests.differential import op_types, optimize, parse, untouched

PASS = "eliminate-identities"


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def test_identity_between_nodes_goes() -> None:
    model = parse("g (float[n, 3] x) => (float[n, 3] y) { a = Relu(x) b = Identity(a) y = Neg(b) }")
    assert op_types(optimize(model, PASS, feed(2, 3), feed(0, 3))) == ["Relu", "Neg"]


def test_identity_that_makes_an_output_hands_its_name_on() -> None:
    model = parse("g (float[n] x) => (float[n] y) { a = Relu(x) y = Identity(a) }")
    assert op_types(optimize(model, PASS, feed(4))) == ["Relu"]


def test_identity_from_input_to_output_stays() -> None:
    untouched(parse("g (float[n] x) => (float[n] y) { y = Identity(x) }"), PASS, "made elsewhere")


def test_identity_of_an_outer_value_in_a_branch_stays() -> None:
    model = parse(
        """g (bool c, float[n] x) => (float[n] y) {
            a = Relu(x)
            y = If (c) <
                then_branch = t () => (float[n] t1) { t1 = Identity(a) },
                else_branch = e () => (float[n] e1) { e1 = Neg(a) }
            >
        }"""
    )
    untouched(model, PASS, "made elsewhere")


def test_dropout_outside_training_goes() -> None:
    model = parse("g (float[n] x) => (float[n] y) { a = Dropout(x) y = Neg(a) }")
    assert op_types(optimize(model, PASS, feed(5))) == ["Neg"]


def test_dropout_that_may_train_stays() -> None:
    model = parse(
        """g (float[n] x, bool t) => (float[n] y) <float r = {0.5}> {
            a = Dropout(x, r, t) y = Neg(a)
        }"""
    )
    untouched(model, PASS, "may train")


def test_dropout_whose_mask_is_read_stays() -> None:
    model = parse(
        "g (float[n] x) => (float[n] y, bool[n] m) { a, b = Dropout(x) y = Neg(a) m = Not(b) }"
    )
    untouched(model, PASS)
