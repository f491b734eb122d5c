"""Feeds from files."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import (
    Feed,
    FeedSource,
)
from onnxopt.errors import FeedError
from tests.data.feeding import accept, signature

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
        source = FeedSource(signature(_IMAGE), tmp_path)
        feeds = list(source.read())
        assert [feed["image"][0, 0, 0] for feed in feeds] == [0, 1, 2]
        assert feeds[0].keys() == {"image", "scale"}
        assert len(source.feeds(accept, 2)) == 2

    def test_numbers_are_cast_when_their_class_stays(self, tmp_path: pathlib.Path) -> None:
        model = signature(
            "g (float[2] a, int64[2] b, bfloat16[2] c, bool[2] d) => (y) { y = Neg(a) }"
        )
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

    def test_a_size_of_minus_one_is_open(self, tmp_path: pathlib.Path) -> None:
        """As exporters of Paddle models write it."""
        np.savez(tmp_path / "0.npz", image=np.zeros((2, 3, 4), np.float32))
        model = signature("g (float[N, 3, 4] image) => (y) { y = Identity(image) }")
        model.graph.inputs[0].shape = ir.Shape([-1, 3, 4])
        [feed] = FeedSource(model, tmp_path).read()
        assert feed["image"].shape == (2, 3, 4)

    def test_floats_are_not_cast_to_integers(self, tmp_path: pathlib.Path) -> None:
        np.savez(tmp_path / "0.npz", ids=np.array([0.5]))
        model = signature("g (int64[1] ids) => (y) { y = Identity(ids) }")
        with pytest.raises(FeedError, match=r"'ids' .* is float64, but the input takes int64"):
            list(FeedSource(model, tmp_path).read())

    def test_errors(self, tmp_path: pathlib.Path) -> None:
        model = signature(_IMAGE)
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
            list(FeedSource(signature(_IMAGE), tmp_path).read())


class TestStacks:
    def _read(self, text: str, folder: pathlib.Path, **arrays: np.ndarray) -> list[Feed]:
        np.savez(folder / "stack.npz", allow_pickle=False, **arrays)
        return list(FeedSource(signature(text), folder / "stack.npz").read())

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
            FeedSource(signature(text), tmp_path / "stack.npz").feeds(accept, 8)


class TestParts:
    """What is read without what stands before it, and without holding all of it."""

    _TEXT = "g (float[n, 3] x, float[2] y) => (z) { z = Neg(x) }"

    def _arrays(self) -> dict[str, Any]:
        x = np.arange(60, dtype=np.float32).reshape(20, 3)
        return {"x": x, "y": np.asfortranarray(np.arange(40, dtype=np.float32).reshape(20, 2))}

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_a_part_of_a_stack(self, save: Any, tmp_path: pathlib.Path) -> None:
        save(tmp_path / "stack.npz", **self._arrays())
        files = FeedSource(signature(self._TEXT), tmp_path / "stack.npz").files
        assert files.count() == 20
        assert files.seekable == (save is np.savez)
        assert [int(feed["x"][0, 0]) for feed in files.at([2, 7, 8, 19, 30])] == [6, 21, 24, 57]
        assert [int(feed["y"][0]) for feed in files.at(range(3, 5))] == [6, 8]
        again = pickle.loads(pickle.dumps(files))
        for one, other in zip(files(), again(), strict=True):
            np.testing.assert_array_equal(one["x"], other["x"])

    def test_a_stack_that_is_written_anew_is_read_anew(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "stack.npz"
        files = FeedSource(signature("g (float[n, 3] x) => (z) { z = Neg(x) }"), path).files
        np.savez(path, x=np.zeros((4, 3), np.float32))
        assert files.count() == 4
        np.savez(path, x=np.ones((7, 3), np.float32))
        assert sum(float(feed["x"].sum()) for feed in files()) == 21

    def test_compressed_stacks_may_be_read_by_two_at_once(self, tmp_path: pathlib.Path) -> None:
        np.savez_compressed(tmp_path / "stack.npz", **self._arrays())
        files = FeedSource(signature(self._TEXT), tmp_path / "stack.npz").files
        for one, other in zip(files(), files(), strict=True):
            np.testing.assert_array_equal(one["x"], other["x"])

    def test_a_file_that_was_cut_off(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "stack.npz"
        np.savez(path, **self._arrays())
        path.write_bytes(path.read_bytes()[:200])
        files = FeedSource(signature(self._TEXT), path).files
        with pytest.raises(FeedError, match="is not a readable"):
            list(files())
