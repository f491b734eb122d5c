import itertools

import pytest
import torch

from onnxopt.errors import OptionError
from onnxopt.training.masks import n_m_pattern
from onnxopt.training.schedules import PruningSchedule, keep_largest, warm_up_and_cosine


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [warm_up_and_cosine(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_the_cubic_by_hand() -> None:
    schedule = PruningSchedule("gradual", 0.8, begin=0.0, end=0.5)
    assert schedule.sparsity_at(0, 100) == 0.0
    assert schedule.sparsity_at(25, 100) == pytest.approx(0.8 * (1 - 0.5**3))
    assert schedule.sparsity_at(50, 100) == schedule.sparsity_at(99, 100) == 0.8
    assert schedule.sparsity_at(0, 100, initial=0.3) == pytest.approx(0.3)
    assert [step for step in range(100) if schedule.is_due(step, 100)] == [0, 10, 20, 30, 40, 50]


def test_iterative_goes_in_equal_parts() -> None:
    schedule = PruningSchedule("iterative", 0.5, rounds=5, end=1.0)
    due = [step for step in range(100) if schedule.is_due(step, 100)]
    assert due == [0, 20, 40, 60, 80]
    levels = [schedule.sparsity_at(step, 100) for step in due]
    assert levels == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_one_shot_happens_once() -> None:
    schedule = PruningSchedule("one-shot", 0.5)
    assert [step for step in range(10) if schedule.is_due(step, 10)] == [0]


def test_the_largest_stay() -> None:
    weight = torch.tensor([[0.1, -5.0, 2.0, 0.0], [-0.2, 0.3, -4.0, 1.0]])
    keep = keep_largest({"w": weight}, 0.5)["w"]
    assert keep.tolist() == [[False, True, True, False], [False, False, True, True]]
    pairs = keep_largest({"w": weight}, 0.0, (1, 2))["w"]
    assert pairs.tolist() == [[False, True, True, False], [False, True, True, False]]
    assert n_m_pattern(weight * pairs, 1, 2)
    assert not n_m_pattern(weight, 1, 2)


def test_n_m_of_a_convolution_counts_along_its_inputs() -> None:
    weight = torch.randn(6, 8, 3, 3)
    keep = keep_largest({"w": weight}, 0.0, (2, 4))["w"]
    assert n_m_pattern(weight * keep, 2, 4)
    assert float(keep.float().mean()) == 0.5
    odd = torch.randn(6, 7, 3, 3)  # 4 does not divide 7: the share instead
    assert float(keep_largest({"w": odd}, 0.5, (2, 4))["w"].float().mean()) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sparsity": 1.0}, "from 0 up to 1"),
        ({"begin": 0.7}, "begins before it ends"),
        ({"n_m": (4, 2)}, "keeps fewer than all"),
    ],
)
def test_schedules_that_make_no_sense(fields: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        PruningSchedule(**fields)  # type: ignore[arg-type]
