"""Each loss against the same formula worked out with numpy, number by number."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from onnxopt.training import losses

ROWS, CLASSES = 5, 7
S = np.random.default_rng(0).normal(size=(ROWS, CLASSES)) * 2
T = np.random.default_rng(1).normal(size=(ROWS, CLASSES)) * 3
STUDENT, TEACHER = torch.from_numpy(S), torch.from_numpy(T)
WEIGHTS = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0], dtype=torch.float64)


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl_of(p: Any, q: Any) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


def test_kl_is_scaled_by_the_temperature_and_averaged_over_rows_alone() -> None:
    t = 4.0
    wanted = t**2 * np.mean(
        [kl_of(p, q) for p, q in zip(softmax(T / t), softmax(S / t), strict=True)]
    )
    assert losses.kl(STUDENT, TEACHER, t).item() == pytest.approx(wanted)
    # the same as PyTorch's own with "batchmean"
    own = torch.nn.functional.kl_div(
        torch.log_softmax(STUDENT / t, -1), torch.softmax(TEACHER / t, -1), reduction="batchmean"
    )
    assert losses.kl(STUDENT, TEACHER, t).item() == pytest.approx(t**2 * own.item())


def test_the_gradient_of_kl_tends_to_that_of_squared_error_at_high_temperature() -> None:
    """Section 2.1 of the paper: logits of mean 0, gradient (s - t) / classes, whatever T is."""
    student = (STUDENT - STUDENT.mean(-1, keepdim=True)).requires_grad_()
    teacher = TEACHER - TEACHER.mean(-1, keepdim=True)
    losses.kl(student, teacher, 1000.0).backward()
    wanted = (student.detach() - teacher) / CLASSES / ROWS
    torch.testing.assert_close(student.grad, wanted, rtol=0.02, atol=1e-3)


def test_rows_of_weight_zero_do_not_count() -> None:
    kept = WEIGHTS > 0
    for loss in (losses.kl, losses.decoupled_kl, losses.pearson, losses.cosine):
        changed = STUDENT.clone()
        changed[~kept] += 5 * torch.randn(changed[~kept].shape, dtype=torch.float64)
        one = loss(STUDENT, TEACHER, weights=WEIGHTS)
        other = loss(changed, TEACHER, weights=WEIGHTS)
        assert one.item() == pytest.approx(other.item()), loss.__name__
        assert one.item() != pytest.approx(loss(STUDENT, TEACHER).item())


def test_no_row_that_counts_gives_zero_and_not_nan() -> None:
    assert losses.kl(STUDENT, TEACHER, weights=torch.zeros(ROWS)).item() == 0.0


def test_standardized_logits_have_mean_zero_and_deviation_one() -> None:
    z = losses.standardized(TEACHER)
    torch.testing.assert_close(z.mean(-1), torch.zeros(ROWS, dtype=torch.float64))
    torch.testing.assert_close(z.std(-1), torch.ones(ROWS, dtype=torch.float64))
    moved = losses.standardized(3 * TEACHER + 7)
    torch.testing.assert_close(z, moved)


def test_decoupled_kl_against_its_formula() -> None:
    t, alpha, beta = 4.0, 1.5, 6.0
    target = np.array([0, 1, 2, 3, 4])
    total = 0.0
    for row, y in enumerate(target):
        p, q = softmax(T[row] / t), softmax(S[row] / t)
        total += alpha * kl_of([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        total += beta * kl_of(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
    found = losses.decoupled_kl(STUDENT, TEACHER, torch.from_numpy(target), t, alpha, beta)
    assert found.item() == pytest.approx(t**2 * total / ROWS, rel=1e-6)


def test_decoupled_kl_with_the_teachers_own_weight_is_kl() -> None:
    """Equation 6 of the paper: KL = TCKD + (1 - p_y) NCKD, for each row."""
    for row in range(ROWS):
        s, t = STUDENT[row : row + 1], TEACHER[row : row + 1]
        sure = torch.softmax(t, -1).max().item()
        found = losses.decoupled_kl(s, t, None, 1.0, 1.0, 1 - sure)
        assert found.item() == pytest.approx(losses.kl(s, t).item(), rel=1e-5)


def test_pearson_against_numpy() -> None:
    p, q = softmax(S / 2), softmax(T / 2)
    within_rows = np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(ROWS)])
    within_classes = np.mean([1 - np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(CLASSES)])
    found = losses.pearson(STUDENT, TEACHER, 2.0, 3.0, 5.0)
    assert found.item() == pytest.approx(4 * (3 * within_rows + 5 * within_classes), rel=1e-6)


def test_relative_mse_of_a_constant_student_is_one() -> None:
    mean = TEACHER.mean().expand_as(TEACHER)
    scale = TEACHER.var(unbiased=False).item()
    assert losses.relative_mse(mean, TEACHER, scale).item() == pytest.approx(1.0)
    assert losses.relative_mse(STUDENT, TEACHER, 2.0).item() == pytest.approx(
        np.mean((S - T) ** 2) / 2
    )


def test_cosine_sees_direction_alone() -> None:
    wanted = np.mean(
        [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(S, T, strict=True)]
    )
    assert losses.cosine(STUDENT, TEACHER).item() == pytest.approx(wanted)
    assert losses.cosine(9 * TEACHER, TEACHER).item() == pytest.approx(0.0, abs=1e-12)


def test_bernoulli_kl_is_cross_entropy_less_the_teachers_entropy() -> None:
    s, t = torch.sigmoid(STUDENT), torch.sigmoid(TEACHER)
    bce = torch.nn.functional.binary_cross_entropy
    wanted = bce(s, t) - bce(t, t)
    assert losses.bernoulli_kl(s, t).item() == pytest.approx(wanted.item(), rel=1e-6)
    certain = torch.tensor([[0.0, 1.0]])
    assert losses.bernoulli_kl(certain, certain).item() == 0.0


def test_cross_entropy_skips_rows_without_a_label() -> None:
    labels = torch.tensor([0, -1, 2, 3, -1])
    kept = labels >= 0
    wanted = torch.nn.functional.cross_entropy(STUDENT[kept], labels[kept])
    assert losses.cross_entropy(STUDENT, labels).item() == pytest.approx(wanted.item())


def test_ctc_against_all_alignments() -> None:
    """Three steps and the labels [1, 2] have five alignments; sum their probabilities."""
    logits = torch.from_numpy(np.random.default_rng(2).normal(size=(3, 1, 3)))
    p = softmax(logits.numpy())[:, 0]
    total = sum(
        p[0, a] * p[1, b] * p[2, c]
        for a, b, c in [(0, 1, 2), (1, 0, 2), (1, 2, 0), (1, 1, 2), (1, 2, 2)]
    )
    found = losses.ctc(logits, torch.tensor([[1, 2, -1]]))
    assert found.item() == pytest.approx(-math.log(total) / 2)
