"""Writes the samples that the commands read: one array for the images, one for the labels.

    python -m models.fashion_resnet.samples --data fashion_mnist.npz --out samples/

``train.npz`` holds ``image`` float32 [60000, 1, 28, 28] and ``label`` int64 [60000]; ``test.npz``
the 10,000 of the test set, which nothing is trained on or chosen by.
"""

import argparse
from pathlib import Path

import numpy as np

from models.fashion_mnist import dataset


def write(data: dataset.FashionMnist, folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        np.savez(folder / f"{name}.npz", image=dataset.as_input(images), label=labels)
        print(f"{len(images):,} samples in {folder / name}.npz")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write train.npz and test.npz.")
    dataset.add_data_argument(parser)
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to")
    arguments = parser.parse_args()
    write(dataset.load(arguments.data), arguments.out)


if __name__ == "__main__":
    main()
