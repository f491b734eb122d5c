"""Names for what is called after something with a long one."""

from onnxopt.short_names import short_name

LONG = "StatefulPartitionedCall/model/" + "block/" * 40


def test_short_names_stay() -> None:
    assert short_name("conv2d_1/BiasAdd") == "conv2d_1/BiasAdd"
    assert short_name("") == ""


def test_of_long_names_the_end_is_kept() -> None:
    found = short_name(LONG + "conv2d_1/BiasAdd")
    assert "conv2d_1/BiasAdd_" in found
    assert len(found) < 48
    assert short_name(found) == found
    assert len(short_name("x" * 300)) < 48


def test_names_that_end_alike_stay_apart() -> None:
    assert short_name(LONG + "a/MatMul") != short_name(LONG + "b/a/MatMul")
    assert short_name(LONG) == short_name(LONG)
