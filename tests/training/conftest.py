"""Settings of the tests of the PyTorch side."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and tests run in several processes."""
    torch.set_num_threads(1)
