"""Trains FashionNet from scratch and writes its weights.

    python -m models.fashion_mnist.train --data fashion_mnist.npz --out weights.pt

SGD with Nesterov momentum under a one-cycle learning rate; images are mirrored and shifted by up
to two pixels at random. The result depends on the seed, the version of PyTorch and the number of
threads, and on nothing else. The test set is looked at once, at the end.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from models.fashion_mnist import dataset
from models.fashion_mnist.model import FashionNet

BATCH_SIZE = 128
PEAK_LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
MOMENTUM = 0.9
MAX_SHIFT = 2
EVALUATION_BATCH = 1000


def augment(images: Tensor) -> Tensor:
    """Mirror half of the images and shift each by up to ``MAX_SHIFT`` pixels, filling with zero.

    Takes and returns [batch, 1, height, width].
    """
    batch, _, height, width = images.shape
    mirrored = torch.rand(batch, 1, 1, 1) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    padded = functional.pad(images, [MAX_SHIFT] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(0, 2 * MAX_SHIFT + 1, (2, batch))
    return windows[torch.arange(batch), :, down, right]


def one_cycle_sgd(
    model: torch.nn.Module, samples: int, epochs: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """SGD with Nesterov momentum, and a one-cycle learning rate that steps with each batch."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=PEAK_LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        nesterov=True,
    )
    steps = epochs * -(-samples // BATCH_SIZE)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, steps)


def train_epoch(
    model: FashionNet,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """Go through the images once, in random order, and return the mean loss."""
    model.train()
    total_loss = 0.0
    for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
        batch = augment(images[chosen]).contiguous(memory_format=torch.channels_last)
        loss = functional.cross_entropy(model(batch), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total_loss += loss.item() * len(chosen)
    return total_loss / len(images)


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose highest logit is the label's, in [0, 1]."""
    model.eval()
    hits = 0
    for batch, wanted in zip(
        images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True
    ):
        hits += int((model(batch).argmax(1) == wanted).sum())
    return hits / len(images)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train FashionNet on Fashion-MNIST.")
    dataset.add_data_argument(parser)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("weights.pt"), help="weights file")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)

    data = dataset.load(arguments.data)
    images = torch.from_numpy(dataset.as_input(data.train_images))
    labels = torch.from_numpy(data.train_labels)

    # channels_last changes no result, only the memory layout, and trains faster on CPUs.
    model = FashionNet().to(memory_format=torch.channels_last)
    optimizer, schedule = one_cycle_sgd(model, len(images), arguments.epochs)

    for epoch in range(arguments.epochs):
        start = time.perf_counter()
        loss = train_epoch(model, images, labels, optimizer, schedule)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{arguments.epochs}: loss {loss:.4f}, {seconds:.0f} s", flush=True)

    test_images = torch.from_numpy(dataset.as_input(data.test_images))
    test_accuracy = accuracy(model, test_images, torch.from_numpy(data.test_labels))
    print(f"test accuracy: {test_accuracy:.2%} of {len(test_images)} images")
    torch.save(model.state_dict(), arguments.out)
    print(f"weights written to {arguments.out}")


if __name__ == "__main__":
    main()
