import numpy as np
import pytest

from onnxopt.explain.segments import baseline_of, segments_of


@pytest.mark.parametrize(
    ("shape", "grid", "colours"),
    [
        ((1, 3, 224, 224), (7, 7), 0),
        ((1, 224, 224, 3), (7, 7), 2),
        ((1, 1, 28, 28), (7, 7), 0),
        ((1, 3, 48, 320), (3, 16), 0),
        ((1, 3, 6, 5), (6, 5), 0),
        ((1, 12), (1, 12), None),
        ((1, 512), (1, 49), None),
        ((1, 80, 300), (1, 49), None),
        ((1, 64, 8, 8), (1, 49), None),
        ((1,), (1, 1), None),
    ],
)
def test_parts_are_few_and_all_there(
    shape: tuple[int, ...], grid: tuple[int, int], colours: int | None
) -> None:
    sample = np.random.default_rng(0).random(shape).astype(np.float32)
    parts = segments_of("x", sample, np.zeros(shape[1:], np.float32))
    assert parts.grid == grid
    assert parts.colours == colours
    assert parts.labels.shape == shape[1:]
    labels, sizes = np.unique(parts.labels, return_counts=True)
    assert labels.tolist() == list(range(parts.count))
    assert sizes.max() <= 2.5 * sizes.min()


def test_what_is_covered_is_the_baseline_and_the_rest_is_the_sample() -> None:
    sample = np.arange(1, 9, dtype=np.int64)[None]
    parts = segments_of("x", sample, np.full(8, -1))
    kept = np.ones((2, 8), bool)
    kept[1, [2, 5]] = False
    copies = parts.covered(sample, kept)
    assert copies.dtype == np.int64
    assert copies.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, -1, 4, 5, -1, 7, 8]]


def test_patches_lie_row_by_row() -> None:
    sample = np.zeros((1, 1, 14, 14), np.float32)
    parts = segments_of("x", sample, sample[0])
    assert parts.labels[0, 0, 0] == 0
    assert parts.labels[0, 0, 13] == 6
    assert parts.labels[0, 13, 0] == 42


def test_baselines() -> None:
    tokens = [np.array([[5, 0, 0]]), np.array([[7, 9, 0]])]
    assert baseline_of(tokens).tolist() == [0, 0, 0]
    image = np.zeros((1, 3, 8, 8), np.float32)
    image[0, 1] = np.linspace(0, 2, 64).reshape(8, 8)
    grey = baseline_of([image])
    assert grey.shape == (3, 8, 8)
    assert grey[:, 3, 4] == pytest.approx([0, 1, 0])
    assert grey.dtype == np.float32
