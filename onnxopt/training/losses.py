"""Losses that compare a student's output with its teacher's, and with labels.

Functions over rows take ``[rows, width]``: whoever calls them has moved the class axis to the end
and flattened the others, so that images, sequences and maps are all alike here. ``weights``
``[rows]`` says how much each row counts (padding: 0); all count alike when it is None. Every loss
is a mean over rows, so its size does not depend on the size of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "bernoulli_kl",
    "cosine",
    "cross_entropy",
    "ctc",
    "decoupled_kl",
    "kl",
    "mean_over_rows",
    "pearson",
    "relative_mse",
    "standardized",
]

#: Probabilities below this count as this: their logarithm would be all there is to the loss.
_SMALLEST_PROBABILITY = 1e-7
#: Keeps quotients finite where a row is constant.
_TINY = 1e-8


def mean_over_rows(values: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted mean of ``values`` [rows]; 0 when no row counts."""
    if weights is None:
        return values.mean()
    return (values * weights).sum() / weights.sum().clamp_min(_TINY)


def kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """Kullback-Leibler divergence of softened logits.

    ``T^2 * mean_n KL(softmax(t_n / T) || softmax(s_n / T))``: Hinton, Vinyals and Dean, 2015,
    "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531). ``T^2`` keeps the size of the
    gradient when the temperature changes; the mean is over rows alone ("batchmean"), not classes.

    Args:
        student: Logits [rows, classes].
        teacher: Logits [rows, classes].
        temperature: T, above 0.
        weights: Weight of each row.
    """
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1)
    return temperature**2 * mean_over_rows(divergence, weights)


def standardized(logits: Tensor) -> Tensor:
    """Logits with mean 0 and standard deviation 1 in each row.

    ``(z - mean(z)) / std(z)``: Sun et al., 2024, "Logit Standardization in Knowledge Distillation"
    (arXiv:2403.01427). A student that is too small to reach the teacher's range of logits can still
    learn how they relate. Use with `kl` or `decoupled_kl`; the paper's base temperature is 2.
    """
    centred = logits - logits.mean(dim=-1, keepdim=True)
    return centred / (logits.std(dim=-1, keepdim=True) + _TINY)


def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Decoupled knowledge distillation (DKD).

    ``T^2 * (alpha * KL(b_t || b_s) + beta * KL(q_t || q_s))``, where ``b = (p_y, 1 - p_y)`` says
    how sure the model is of the target class y and ``q`` is its distribution over the other
    classes: Zhao et al., 2022, "Decoupled Knowledge Distillation" (arXiv:2203.08679), equation 7.
    `kl` is the same with ``beta = 1 - p_y`` of the teacher, which silences the other classes
    where the teacher is sure.

    Args:
        student: Logits [rows, classes].
        teacher: Logits [rows, classes].
        target: Class of each row [rows], int64; the teacher's first choice when None.
        temperature: T, above 0.
        alpha: Weight of the target class.
        beta: Weight of the other classes.
        weights: Weight of each row.
    """
    target = teacher.argmax(dim=-1) if target is None else target
    hit = functional.one_hot(target, teacher.shape[-1]).bool()
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    target_part = mean_over_rows(
        _bernoulli_kl(log_student[hit].exp(), log_teacher[hit].exp()), weights
    )
    # The target class leaves the softmax: its logit becomes so low that it takes no share.
    lowest = torch.finfo(teacher.dtype).min
    other_student = functional.log_softmax((student / temperature).masked_fill(hit, lowest), dim=-1)
    other_teacher = functional.log_softmax((teacher / temperature).masked_fill(hit, lowest), dim=-1)
    difference = (other_teacher - other_student).masked_fill(hit, 0.0)
    other_part = mean_over_rows((other_teacher.exp() * difference).sum(dim=-1), weights)
    return temperature**2 * (alpha * target_part + beta * other_part)


def pearson(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Distillation by correlation (DIST).

    ``T^2 * (beta * mean_n (1 - r(p_n, q_n)) + gamma * mean_c (1 - r(p^c, q^c)))``, where r is
    Pearson's correlation of the student's and the teacher's probabilities, first between the
    classes of a row and then between the rows of a class: Huang et al., 2022, "Knowledge
    Distillation from A Stronger Teacher" (arXiv:2205.10536), equations 8 to 10. Rows of weight 0
    are left out; with fewer than two others there is no second part.

    Args:
        student: Logits [rows, classes].
        teacher: Logits [rows, classes].
        temperature: T, above 0.
        beta: Weight of the correlation within rows.
        gamma: Weight of the correlation within classes.
        weights: Weight of each row.
    """
    if weights is not None:
        student, teacher, weights = (each[weights > 0] for each in (student, teacher, weights))
    p = functional.softmax(student / temperature, dim=-1)
    q = functional.softmax(teacher / temperature, dim=-1)
    loss = beta * mean_over_rows(1 - _correlation(p, q), weights)
    if len(p) > 1:
        loss = loss + gamma * (1 - _correlation(p.T, q.T)).mean()
    return temperature**2 * loss


def relative_mse(
    student: Tensor, teacher: Tensor, scale: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """Mean squared error divided by ``scale``.

    ``mean((s - t)^2) / scale`` (for logits: Ba and Caruana, 2014, "Do Deep Nets Really Need to be
    Deep?", arXiv:1312.6184). With the teacher's variance for the scale, 1 is what a constant would
    reach, whatever the unit of the output.

    Args:
        student: Numbers [rows, width].
        teacher: Numbers [rows, width].
        scale: Variance of the teacher's output, above 0.
        weights: Weight of each row.
    """
    return mean_over_rows((student - teacher).square().mean(dim=-1), weights) / scale


def cosine(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """One minus the cosine of the angle between embeddings.

    ``mean_n (1 - s_n . t_n / (|s_n| |t_n|))`` (for hidden states: Sanh et al., 2019, "DistilBERT",
    arXiv:1910.01108). It does not see the length of a vector.

    Args:
        student: Embeddings [rows, width].
        teacher: Embeddings [rows, width].
        weights: Weight of each row.
    """
    return mean_over_rows(1 - functional.cosine_similarity(student, teacher, dim=-1), weights)


def bernoulli_kl(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence of independent probabilities, such as a map after a sigmoid.

    ``mean (t ln(t / s) + (1 - t) ln((1 - t) / (1 - s)))``, which is binary cross-entropy less what
    no student can reach, the teacher's own entropy (for detectors: Chen et al., 2017, "Learning
    Efficient Object Detection Models with Knowledge Distillation", with one class).

    Args:
        student: Probabilities [rows, width].
        teacher: Probabilities [rows, width].
        weights: Weight of each row.
    """
    return mean_over_rows(_bernoulli_kl(student, teacher).mean(dim=-1), weights)


def cross_entropy(
    student: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy with labels, ``mean_n -ln softmax(s_n)[y_n]``.

    Args:
        student: Logits [rows, classes].
        labels: Classes [rows], int64; rows with a label below 0 do not count.
        smoothing: Share of each label that goes to all classes alike (Szegedy et al., 2016).
        weights: Weight of each row.
    """
    counted = (labels >= 0).to(student.dtype)
    weights = counted if weights is None else weights * counted
    each = functional.cross_entropy(
        student, labels.clamp_min(0), reduction="none", label_smoothing=smoothing
    )
    return mean_over_rows(each, weights)


def ctc(student: Tensor, labels: Tensor, blank: int = 0) -> Tensor:
    """Connectionist temporal classification, divided by the length of the labels.

    ``-ln sum over alignments of prod_t p_t``: Graves et al., 2006. Labels that are longer than the
    sequence allows count 0, as there is no alignment.

    Args:
        student: Logits [steps, batch, classes].
        labels: Classes [batch, length], int64, padded with -1.
        blank: The class that stands for no symbol.
    """
    steps, batch, _ = student.shape
    loss: Tensor = functional.ctc_loss(
        functional.log_softmax(student, dim=-1),
        labels.clamp_min(0),
        torch.full((batch,), steps, dtype=torch.int64),
        (labels >= 0).sum(dim=1),
        blank=blank,
        zero_infinity=True,
    )
    return loss


def _bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    s = student.clamp(_SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
    t = teacher.clamp(_SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
    return t * (t.log() - s.log()) + (1 - t) * ((1 - t).log() - (1 - s).log())


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two matrices."""
    x = x - x.mean(dim=-1, keepdim=True)
    y = y - y.mean(dim=-1, keepdim=True)
    return functional.cosine_similarity(x, y, dim=-1, eps=_TINY)
