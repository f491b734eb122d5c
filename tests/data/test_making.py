"""Feeds that are made up."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxopt.data import (
    Feed,
    FeedSource,
    required_inputs,
)
from onnxopt.errors import FeedError, RuntimeCrashError, RuntimeRefusalError
from tests.data.feeding import accept, made_up, signature


class TestMadeUp:
    def test_two_sizes_of_each_dynamic_dimension_and_two_seeds(self) -> None:
        feeds = made_up(signature("g (float[N, 3, L] x) => (y) { y = Relu(x) }"))
        shapes = [feed["x"].shape for feed in feeds]
        assert len(feeds) == 4
        assert len({shape[0] for shape in shapes}) == 2
        assert len({shape[2] for shape in shapes}) == 2
        assert {shape[1] for shape in shapes} == {3}
        assert not np.array_equal(feeds[0]["x"], feeds[1]["x"])

    def test_one_symbol_is_one_size(self) -> None:
        text = "g (float[N, L] a, float[N, L] b, float[L] c) => (y) { d = Add(a, b) y = Add(d, c) }"
        for feed in made_up(signature(text)):
            assert feed["a"].shape == feed["b"].shape
            assert feed["c"].shape == feed["a"].shape[1:]

    def test_static_models_have_a_feed_a_seed(self) -> None:
        assert len(made_up(signature("g (float[2] x) => (y) { y = Relu(x) }"))) == 2
        assert len(made_up(signature("g () => (y) { y = Constant<value = float {1}>() }"))) == 1

    def test_the_limit(self) -> None:
        assert len(made_up(signature("g (float[N] x) => (y) { y = Relu(x) }"), limit=3)) == 3

    def test_they_are_the_same_each_time(self) -> None:
        model = signature("g (float[N] x) => (y) { y = Relu(x) }")
        for one, other in zip(made_up(model), made_up(model), strict=True):
            np.testing.assert_array_equal(one["x"], other["x"])

    @pytest.mark.parametrize("axis", [0, 1])
    def test_indices_stay_in_the_table(self, axis: int) -> None:
        text = f"g (int64[N, L] ids) => (y) {{ a = Identity(ids) y = Gather<axis = {axis}>(t, a) }}"
        shape = (7, 100) if axis == 0 else (100, 7)
        for feed in made_up(signature(text, t=np.zeros(shape, np.float32))):
            assert feed["ids"].min() >= 0
            assert feed["ids"].max() < 7

    def test_masks_are_ones(self) -> None:
        model = signature("g (int64[N, L] attention_mask) => (y) { y = Identity(attention_mask) }")
        assert all((feed["attention_mask"] == 1).all() for feed in made_up(model))

    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            ("bool", np.bool_),
            ("uint8", np.uint8),
            ("int8", np.int8),
            ("float16", np.float16),
            ("bfloat16", ml_dtypes.bfloat16),
            ("double", np.float64),
            ("string", object),
        ],
    )
    def test_types(self, kind: str, dtype: type) -> None:
        model = signature(f"g ({kind}[2, 3] x) => (y) {{ y = Identity(x) }}")
        feeds = FeedSource(model).feeds(accept, 8)
        assert all(feed["x"].dtype == dtype and feed["x"].shape == (2, 3) for feed in feeds)

    def test_sequences(self) -> None:
        model = signature("g (seq(float[3]) x) => (y) { y = SequenceLength(x) }")
        for feed in made_up(model):
            assert [array.shape for array in feed["x"]] == [(3,), (3,)]

    def test_optionals_have_to_be_given(self) -> None:
        model = signature("g (optional(float[2]) x) => (y) { y = OptionalHasElement(x) }")
        with pytest.raises(FeedError, match="'x' is of a kind that cannot be made up"):
            made_up(model)

    def test_defaults_are_not_fed(self) -> None:
        model = signature(
            "g (float[2] x, float[2] w) => (y) { y = Add(x, w) }", w=np.ones(2, np.float32)
        )
        assert [value.name for value in required_inputs(model)] == ["x"]
        assert all(feed.keys() == {"x"} for feed in made_up(model))

    def test_sizes_grow_until_the_model_runs(self) -> None:
        text = "g (float[1, 1, H] x) => (y) { y = MaxPool<kernel_shape = [40]>(x) }"
        feeds = made_up(signature(text))
        assert feeds
        assert all(feed["x"].shape[2] >= 40 for feed in feeds)

    def test_a_state_whose_batch_is_not_first(self) -> None:
        text = """
            g (float[N, 4] x, float[2, B, 4] h) => (y) {
                a = Unsqueeze(x, z)
                y = Concat<axis = 0>(a, h)
            }
        """
        feeds = made_up(signature(text, z=np.array([0])))
        assert {feed["x"].shape[0] for feed in feeds} == {1, 3}
        assert all(feed["x"].shape[0] == feed["h"].shape[1] for feed in feeds)

    def test_a_fixed_size_of_0(self) -> None:
        feeds = made_up(signature("g (float[N, 0] x, float[N] z) => (y) { y = Identity(x) }"))
        assert all(feed["x"].shape[1] == 0 for feed in feeds)

    def test_a_crash_ends_the_search(self) -> None:
        def crash(feed: Feed) -> object:
            raise RuntimeCrashError("gone")

        model = signature("g (float[N] x) => (y) { y = Relu(x) }")
        with pytest.raises(RuntimeCrashError, match="gone"):
            FeedSource(model).feeds(crash, 8)

    def test_what_helps_is_said(self) -> None:
        def refuse(feed: Feed) -> object:
            raise RuntimeRefusalError("no such shape for 'length'")

        model = signature("g (float[N, 3] x, int64[L] length) => (y) { y = Relu(x) }")
        with pytest.raises(FeedError) as caught:
            FeedSource(model).feeds(refuse, 8)
        message = str(caught.value)
        assert "'length'" in message
        assert "--shape length:1" in message
        assert "--input length=VALUE" in message
        assert "--data" in message
        assert "no such shape" in message
