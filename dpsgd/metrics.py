"""Test metrics of a binary classifier. They are exact: computed on data, not covered by epsilon."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def evaluate(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> dict[str, float | None]:
    """Metrics of logits [n] against labels 0 or 1 [n]; None where they are not defined or finite.

    A record counts as positive if its logit is greater than 0, probability one half.
    """
    positive = labels == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not len(labels):
        return dict.fromkeys(
            ("accuracy", "balanced_accuracy", "auc", "majority_accuracy", "log_loss")
        )
    right = (logits > 0) == positive
    both = num_positive > 0 and num_negative > 0
    z = logits.astype(np.float64)
    found: dict[str, float | None] = {
        "accuracy": float(right.mean()),
        "balanced_accuracy": (
            float(right[positive].mean() + right[~positive].mean()) / 2 if both else None
        ),
        "auc": _auc(logits, positive) if both else None,
        "majority_accuracy": max(num_positive, num_negative) / len(labels),
        "log_loss": _log_loss(z, labels),
    }
    return {
        name: None if value is None or not math.isfinite(value) else value
        for name, value in found.items()
    }


def _log_loss(logits: NDArray[np.float64], labels: NDArray[np.float32]) -> float:
    with np.errstate(invalid="ignore"):  # logits of a training that diverged
        return float(np.mean(np.logaddexp(0, logits) - labels * logits))


def _auc(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve from mean ranks: ties count one half (Mann and Whitney, 1947)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    rank_sum = float(mean_rank[inverse[positive]].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)
