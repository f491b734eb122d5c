"""Trains the teacher from scratch and writes its weights.

    python -m models.fashion_resnet.train --data fashion_mnist.npz --out weights.pt

SGD with Nesterov momentum under a one-cycle learning rate; images are mirrored and shifted by up to
two pixels at random, and a patch of some is blanked out (Zhong et al., 2020, "Random erasing"). The
weights that are kept are a running mean of the last ones (Polyak and Juditsky, 1992), with
BatchNorm's statistics taken anew for them. Layers compute in bfloat16 where ``--bfloat16`` says so,
which halves the time on processors that have it. The test set is looked at once, at the end.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.fashion_mnist import dataset
from models.fashion_mnist.train import (
    BATCH_SIZE,
    accuracy,
    augment,
    one_cycle_sgd,
)
from models.fashion_resnet.model import FashionResNet

AVERAGE_DECAY = 0.999
ERASED_SHARE = 0.25
LARGEST_PATCH = 10
STATISTICS_BATCHES = 100


def erase(images: Tensor) -> Tensor:
    """Set a square patch of a quarter of the images to zero, in place.

    Takes and returns [batch, 1, height, width].
    """
    batch, _, height, width = images.shape
    size = torch.randint(2, LARGEST_PATCH + 1, (batch, 1))
    top = (torch.rand(batch, 1) * (height - size)).long()
    left = (torch.rand(batch, 1) * (width - size)).long()
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top) & (rows < top + size)
    in_columns = (columns >= left) & (columns < left + size)
    patch = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    patch &= torch.rand(batch, 1, 1, 1) < ERASED_SHARE
    return images.masked_fill_(patch, 0.0)


def train(
    images: Tensor, labels: Tensor, *, epochs: int, bfloat16: bool = False
) -> torch.nn.Module:
    """Train on images [n, 1, 28, 28] and labels [n]; return the averaged model."""
    # channels_last changes no result, only the memory layout, and trains faster on CPUs.
    model = FashionResNet().to(memory_format=torch.channels_last)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))
    optimizer, schedule = one_cycle_sgd(model, len(images), epochs)
    for epoch in range(epochs):
        start, total_loss = time.perf_counter(), 0.0
        model.train()
        for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
            batch = erase(augment(images[chosen]).contiguous())
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = model(batch.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
            total_loss += loss.item() * len(chosen)
        seconds = time.perf_counter() - start
        mean = total_loss / len(images)
        print(f"epoch {epoch + 1}/{epochs}: loss {mean:.4f}, {seconds:.0f} s", flush=True)
    chosen_batches = torch.randperm(len(images)).split(BATCH_SIZE)[:STATISTICS_BATCHES]
    torch.optim.swa_utils.update_bn((images[chosen] for chosen in chosen_batches), averaged)
    kept = averaged.module
    assert isinstance(kept, torch.nn.Module)
    return kept


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the teacher on Fashion-MNIST.")
    dataset.add_data_argument(parser)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="compute layers in bfloat16")
    parser.add_argument("--out", type=Path, default=Path("weights.pt"), help="weights file")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    data = dataset.load(arguments.data)
    images = torch.from_numpy(dataset.as_input(data.train_images))
    labels = torch.from_numpy(data.train_labels)
    model = train(images, labels, epochs=arguments.epochs, bfloat16=arguments.bfloat16)
    torch.save(model.state_dict(), arguments.out)

    test_images = torch.from_numpy(dataset.as_input(data.test_images))
    share = accuracy(model, test_images, torch.from_numpy(data.test_labels))
    print(f"test accuracy: {share:.2%} of {len(test_images)} images")
    print(f"weights written to {arguments.out}")


if __name__ == "__main__":
    main()
