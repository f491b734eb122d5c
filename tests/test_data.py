"""Feeds from files, and feeds that are made up."""

from __future__ import annotations

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import (
    Feed,
    FeedRequest,
    FeedSource,
    input_named,
    required_inputs,
    value_from_text,
)
from onnxopt.errors import FeedError, RuntimeCrashError, RuntimeRefusalError
from onnxopt.model import from_proto, to_proto
from tests.differential import parse, run


def _model(text: str, **weights: np.ndarray) -> ir.Model:
    header = '<ir_version: 10, opset_import: ["" : 21]>'
    return from_proto(parse(header + text, weights))


def _runner(model: ir.Model) -> Any:
    proto = to_proto(model)

    def try_run(feed: Feed) -> object:
        try:
            return run(proto, feed)
        except Exception as error:
            raise RuntimeRefusalError(str(error)) from error

    return try_run


def _made_up(model: ir.Model, request: FeedRequest | None = None, limit: int = 8) -> list[Feed]:
    return FeedSource(model, None, request).feeds(_runner(model), limit)


def _accept(feed: Feed) -> object:
    return feed


_IMAGE = "g (float[N, 3, 4] image, float[N] scale) => (y) { y = Identity(image) }"


class TestFolders:
    def test_one_feed_a_file_in_the_order_of_their_names(self, tmp_path: pathlib.Path) -> None:
        for number in (2, 0, 1):
            np.savez(
                tmp_path / f"{number}.npz",
                image=np.full((1, 3, 4), number, np.float32),
                scale=np.zeros(1, np.float32),
                more=np.zeros(5),
            )
        source = FeedSource(_model(_IMAGE), tmp_path)
        feeds = list(source.read())
        assert [feed["image"][0, 0, 0] for feed in feeds] == [0, 1, 2]
        assert feeds[0].keys() == {"image", "scale"}
        assert len(source.feeds(_accept, 2)) == 2

    def test_numbers_are_cast_when_their_class_stays(self, tmp_path: pathlib.Path) -> None:
        model = _model("g (float[2] a, int64[2] b, bfloat16[2] c, bool[2] d) => (y) { y = Neg(a) }")
        np.savez(
            tmp_path / "0.npz",
            a=np.array([1.0, 2.0]),
            b=np.array([1, 2], np.int32),
            c=np.array([1, 2], np.float32),
            d=np.array([0, 1]),
        )
        [feed] = FeedSource(model, tmp_path).read()
        assert [feed[name].dtype for name in "abcd"] == [
            np.float32,
            np.int64,
            ml_dtypes.bfloat16,
            np.bool_,
        ]

    def test_floats_are_not_cast_to_integers(self, tmp_path: pathlib.Path) -> None:
        np.savez(tmp_path / "0.npz", ids=np.array([0.5]))
        model = _model("g (int64[1] ids) => (y) { y = Identity(ids) }")
        with pytest.raises(FeedError, match=r"'ids' .* is float64, but the input takes int64"):
            list(FeedSource(model, tmp_path).read())

    def test_errors(self, tmp_path: pathlib.Path) -> None:
        model = _model(_IMAGE)
        with pytest.raises(FeedError, match=r"holds no \.npz files"):
            list(FeedSource(model, tmp_path).read())
        np.savez(tmp_path / "0.npz", imaje=np.zeros(1))
        with pytest.raises(FeedError, match="no array for input 'image'; is it 'imaje'"):
            list(FeedSource(model, tmp_path).read())
        (tmp_path / "0.npz").write_bytes(b"nothing")
        with pytest.raises(FeedError, match="not a readable"):
            list(FeedSource(model, tmp_path).read())
        with pytest.raises(FeedError, match="does not exist"):
            list(FeedSource(model, tmp_path / "none.npz").read())

    def test_pickles_are_not_read(self, tmp_path: pathlib.Path) -> None:
        np.savez(tmp_path / "0.npz", image=np.array([{}], dtype=object))
        with pytest.raises(FeedError, match="not a readable"):
            list(FeedSource(_model(_IMAGE), tmp_path).read())


class TestStacks:
    def _read(self, text: str, folder: pathlib.Path, **arrays: np.ndarray) -> list[Feed]:
        np.savez(folder / "stack.npz", allow_pickle=False, **arrays)
        return list(FeedSource(_model(text), folder / "stack.npz").read())

    def test_samples_keep_a_batch_axis(self, tmp_path: pathlib.Path) -> None:
        images = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
        feeds = self._read(_IMAGE, tmp_path, image=images, scale=np.arange(5, dtype=np.float32))
        assert len(feeds) == 5
        np.testing.assert_array_equal(feeds[3]["image"], images[3:4])
        np.testing.assert_array_equal(feeds[3]["scale"], [3])

    def test_samples_of_models_without_a_batch_axis(self, tmp_path: pathlib.Path) -> None:
        text = "g (float[3, 4] image) => (y) { y = Neg(image) }"
        feeds = self._read(text, tmp_path, image=np.zeros((5, 3, 4), np.float32))
        assert [feed["image"].shape for feed in feeds] == [(3, 4)] * 5

    def test_a_fixed_batch_is_filled(self, tmp_path: pathlib.Path) -> None:
        text = "g (float[2, 3] x) => (y) { y = Neg(x) }"
        feeds = self._read(text, tmp_path, x=np.arange(15, dtype=np.float32).reshape(5, 3))
        assert [feed["x"].tolist() for feed in feeds] == [
            [[0, 1, 2], [3, 4, 5]],
            [[6, 7, 8], [9, 10, 11]],
        ]

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"image": (5, 3, 4), "scale": (4,)}, "different numbers of samples: .4, 5."),
            ({"image": (5, 3), "scale": (5,)}, "no stack of samples for an input of 3"),
            ({"image": (), "scale": (5,)}, "no stack of samples"),
        ],
    )
    def test_errors(
        self, arrays: dict[str, tuple[int, ...]], message: str, tmp_path: pathlib.Path
    ) -> None:
        zeros = {name: np.zeros(shape, np.float32) for name, shape in arrays.items()}
        with pytest.raises(FeedError, match=message):
            self._read(_IMAGE, tmp_path, **zeros)

    def test_empty(self, tmp_path: pathlib.Path) -> None:
        text = "g (float[N, 3] x) => (y) { y = Neg(x) }"
        np.savez(tmp_path / "stack.npz", x=np.zeros((0, 3), np.float32))
        with pytest.raises(FeedError, match="holds no samples"):
            FeedSource(_model(text), tmp_path / "stack.npz").feeds(_accept, 8)


class TestMadeUp:
    def test_two_sizes_of_each_dynamic_dimension_and_two_seeds(self) -> None:
        feeds = _made_up(_model("g (float[N, 3, L] x) => (y) { y = Relu(x) }"))
        shapes = [feed["x"].shape for feed in feeds]
        assert len(feeds) == 4
        assert len({shape[0] for shape in shapes}) == 2
        assert len({shape[2] for shape in shapes}) == 2
        assert {shape[1] for shape in shapes} == {3}
        assert not np.array_equal(feeds[0]["x"], feeds[1]["x"])

    def test_one_symbol_is_one_size(self) -> None:
        text = "g (float[N, L] a, float[N, L] b, float[L] c) => (y) { d = Add(a, b) y = Add(d, c) }"
        for feed in _made_up(_model(text)):
            assert feed["a"].shape == feed["b"].shape
            assert feed["c"].shape == feed["a"].shape[1:]

    def test_static_models_have_a_feed_a_seed(self) -> None:
        assert len(_made_up(_model("g (float[2] x) => (y) { y = Relu(x) }"))) == 2
        assert len(_made_up(_model("g () => (y) { y = Constant<value = float {1}>() }"))) == 1

    def test_the_limit(self) -> None:
        assert len(_made_up(_model("g (float[N] x) => (y) { y = Relu(x) }"), limit=3)) == 3

    def test_they_are_the_same_each_time(self) -> None:
        model = _model("g (float[N] x) => (y) { y = Relu(x) }")
        for one, other in zip(_made_up(model), _made_up(model), strict=True):
            np.testing.assert_array_equal(one["x"], other["x"])

    @pytest.mark.parametrize("axis", [0, 1])
    def test_indices_stay_in_the_table(self, axis: int) -> None:
        text = f"g (int64[N, L] ids) => (y) {{ a = Identity(ids) y = Gather<axis = {axis}>(t, a) }}"
        shape = (7, 100) if axis == 0 else (100, 7)
        for feed in _made_up(_model(text, t=np.zeros(shape, np.float32))):
            assert feed["ids"].min() >= 0
            assert feed["ids"].max() < 7

    def test_masks_are_ones(self) -> None:
        model = _model("g (int64[N, L] attention_mask) => (y) { y = Identity(attention_mask) }")
        assert all((feed["attention_mask"] == 1).all() for feed in _made_up(model))

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
        model = _model(f"g ({kind}[2, 3] x) => (y) {{ y = Identity(x) }}")
        feeds = FeedSource(model).feeds(_accept, 8)
        assert all(feed["x"].dtype == dtype and feed["x"].shape == (2, 3) for feed in feeds)

    def test_sequences(self) -> None:
        model = _model("g (seq(float[3]) x) => (y) { y = SequenceLength(x) }")
        for feed in _made_up(model):
            assert [array.shape for array in feed["x"]] == [(3,), (3,)]

    def test_optionals_have_to_be_given(self) -> None:
        model = _model("g (optional(float[2]) x) => (y) { y = OptionalHasElement(x) }")
        with pytest.raises(FeedError, match="'x' is of a kind that cannot be made up"):
            _made_up(model)

    def test_defaults_are_not_fed(self) -> None:
        model = _model(
            "g (float[2] x, float[2] w) => (y) { y = Add(x, w) }", w=np.ones(2, np.float32)
        )
        assert [value.name for value in required_inputs(model)] == ["x"]
        assert all(feed.keys() == {"x"} for feed in _made_up(model))

    def test_sizes_grow_until_the_model_runs(self) -> None:
        text = "g (float[1, 1, H] x) => (y) { y = MaxPool<kernel_shape = [40]>(x) }"
        feeds = _made_up(_model(text))
        assert feeds
        assert all(feed["x"].shape[2] >= 40 for feed in feeds)

    def test_a_state_whose_batch_is_not_first(self) -> None:
        text = """
            g (float[N, 4] x, float[2, B, 4] h) => (y) {
                a = Unsqueeze(x, z)
                y = Concat<axis = 0>(a, h)
            }
        """
        feeds = _made_up(_model(text, z=np.array([0])))
        assert {feed["x"].shape[0] for feed in feeds} == {1, 3}
        assert all(feed["x"].shape[0] == feed["h"].shape[1] for feed in feeds)

    def test_a_fixed_size_of_0(self) -> None:
        feeds = _made_up(_model("g (float[N, 0] x, float[N] z) => (y) { y = Identity(x) }"))
        assert all(feed["x"].shape[1] == 0 for feed in feeds)

    def test_a_crash_ends_the_search(self) -> None:
        def crash(feed: Feed) -> object:
            raise RuntimeCrashError("gone")

        model = _model("g (float[N] x) => (y) { y = Relu(x) }")
        with pytest.raises(RuntimeCrashError, match="gone"):
            FeedSource(model).feeds(crash, 8)

    def test_what_helps_is_said(self) -> None:
        def refuse(feed: Feed) -> object:
            raise RuntimeRefusalError("no such shape for 'length'")

        model = _model("g (float[N, 3] x, int64[L] length) => (y) { y = Relu(x) }")
        with pytest.raises(FeedError) as caught:
            FeedSource(model).feeds(refuse, 8)
        message = str(caught.value)
        assert "'length'" in message
        assert "--shape length:1" in message
        assert "--input length=VALUE" in message
        assert "--data" in message
        assert "no such shape" in message


class TestRequests:
    _TEXT = "g (float[N, C, L] x, float[N] s, int64 rate) => (y) { y = Relu(x) }"

    def test_shapes_and_values(self) -> None:
        request = FeedRequest({"rate": np.array(16000)}, {"x": (-1, 5, 7)})
        for feed in _made_up(_model(self._TEXT), request):
            assert feed["rate"] == 16000
            assert feed["x"].shape[1:] == (5, 7)
            assert feed["x"].shape[0] == feed["s"].shape[0]

    def test_a_fixed_symbol_holds_everywhere(self) -> None:
        for feed in _made_up(_model(self._TEXT), FeedRequest(shapes={"x": (4, 5, 7)})):
            assert feed["s"].shape == (4,)
        request = FeedRequest(values={"s": np.zeros(6, np.float32)})
        for feed in _made_up(_model(self._TEXT), request):
            assert feed["x"].shape[0] == 6

    def test_seeds(self) -> None:
        request = FeedRequest(seeds=(0, 1, 2), shapes={"x": (1, 2, 3)})
        assert len(_made_up(_model(self._TEXT), request)) == 3

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
            FeedSource(_model(self._TEXT), None, request_)


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
        model = _model(f"g ({kind} x) => (y) {{ y = Identity(x) }}")
        value = value_from_text(text, input_named(model, "x"))
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)

    def test_files(self, tmp_path: pathlib.Path) -> None:
        np.save(tmp_path / "x.npy", np.ones((2, 2)))
        model = _model("g (float[2, 2] x) => (y) { y = Identity(x) }")
        value = value_from_text(str(tmp_path / "x.npy"), input_named(model, "x"))
        assert value.dtype == np.float32
        with pytest.raises(FeedError, match="not a readable"):
            value_from_text(str(tmp_path / "none.npy"), input_named(model, "x"))

    @pytest.mark.parametrize(
        ("text", "message"), [("a,b", "is not a value for input 'x'"), ("1,2,3", "has 3 numbers")]
    )
    def test_errors(self, text: str, message: str) -> None:
        model = _model("g (float[2, 2] x) => (y) { y = Identity(x) }")
        with pytest.raises(FeedError, match=message):
            value_from_text(text, input_named(model, "x"))
