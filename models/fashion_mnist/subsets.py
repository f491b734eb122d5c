"""Writes the two small sets of images that go with the model.

    python -m models.fashion_mnist.subsets --data fashion_mnist.npz

``calibration.npz`` holds ``image`` float32 [256, 1, 28, 28] from the training set, in the layout
that `onnxopt --data` reads: one array per model input, samples along the first axis.
``test.npz`` holds ``image`` float32 [2000, 1, 28, 28] and ``label`` int64 [2000]: the first 200
images of each class of the test set, in their original order.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.fashion_mnist import dataset

CALIBRATION_IMAGES = 256
CALIBRATION_SEED = 0
TEST_IMAGES_PER_CLASS = 200


def first_of_each_class(labels: NDArray[np.int64], count: int) -> NDArray[np.intp]:
    """Return, in ascending order, where each class in ``labels`` occurs for the first time(s).

    Raises:
        ValueError: a class occurs fewer than ``count`` times.
    """
    positions = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if any(len(found) < count for found in positions):
        raise ValueError(f"a class has fewer than {count} images")
    return np.sort(np.concatenate([found[:count] for found in positions]))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write calibration.npz and test.npz.")
    dataset.add_data_argument(parser)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder to write to"
    )
    arguments = parser.parse_args()

    data = dataset.load(arguments.data)
    chosen = np.random.default_rng(CALIBRATION_SEED).choice(
        len(data.train_images), CALIBRATION_IMAGES, replace=False
    )
    calibration = dataset.as_input(data.train_images[chosen])
    np.savez_compressed(arguments.out / "calibration.npz", image=calibration)

    tested = first_of_each_class(data.test_labels, TEST_IMAGES_PER_CLASS)
    np.savez_compressed(
        arguments.out / "test.npz",
        image=dataset.as_input(data.test_images[tested]),
        label=data.test_labels[tested],
    )
    print(f"{len(calibration)} calibration and {len(tested)} test images in {arguments.out}")


if __name__ == "__main__":
    main()
