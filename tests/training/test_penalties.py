import math

import numpy as np
import pytest
import torch

from onnxopt.errors import OptionError
from onnxopt.model import from_proto
from onnxopt.training.penalties import ChannelSlices, channel_slices, group_lasso, norm_penalty
from tests.training import models


def test_norms_by_hand() -> None:
    weights = {"a": torch.tensor([[3.0, -4.0]]), "b": torch.tensor([[2.0]])}
    assert norm_penalty(weights, 0.5)().item() == pytest.approx(4.5)
    assert norm_penalty(weights, 0.5, "l2")().item() == pytest.approx(0.5 * 29 / 2)


def test_group_lasso_by_hand() -> None:
    """Groups 0 and 1 take one row of ``a`` (2 numbers) and one column of ``b`` (1 number) each."""
    weights = {"a": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "b": torch.tensor([[12.0, 2.0]])}
    slices = [
        ChannelSlices("a", 0, np.array([0, 1])),
        ChannelSlices("b", 1, np.array([0, 1])),
    ]
    wanted = math.sqrt(3) * (13 + 2)
    assert group_lasso(weights, slices, 1.0)().item() == pytest.approx(wanted)


def test_a_group_that_is_zero_has_no_nan_for_a_slope() -> None:
    weight = torch.zeros(2, 3, requires_grad=True)
    group_lasso({"w": weight}, [ChannelSlices("w", 0, np.array([0, 1]))], 1.0)().backward()
    assert weight.grad is not None
    assert bool(torch.isfinite(weight.grad).all())


def test_channels_of_a_model_that_may_go() -> None:
    found = {each.weight: each for each in channel_slices(from_proto(models.convolutional()))}
    assert set(found) == {"w1", "w2"}  # those of w3 are an output of the graph
    assert [found[name].axis for name in ("w1", "w2")] == [0, 0]
    assert not set(found["w1"].groups) & set(found["w2"].groups)
    assert len(found["w2"].groups) == models.CHANNELS


def test_nothing_to_draw_to_zero() -> None:
    with pytest.raises(OptionError, match="no weight makes channels"):
        group_lasso({}, [], 1.0)
