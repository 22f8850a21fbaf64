"""How far two distributions over the same bins are apart."""

from __future__ import annotations

import math

import numpy as np


def jensen_shannon_divergence(first: np.ndarray, second: np.ndarray) -> float:
    """Mean relative entropy of two distributions to their mean, nats, from 0 to ln 2.

    ``(KL(p | m) + KL(q | m)) / 2`` with ``m = (p + q) / 2``. It is finite where bins are empty
    and symmetric; divide by ln 2 for bits. Between histograms of ``n`` and ``m`` independent
    samples of one distribution over ``k`` bins that hold many, it is
    ``(k - 1) (1 / n + 1 / m) / 8`` on average.

    Args:
        first: histogram or density, any shape; need not be normalised.
        second: likewise, same shape.

    Raises:
        ValueError: for shapes that differ, and values that are negative, not finite, or all zero.

    References:
        Lin, IEEE Trans. Inf. Theory 37, 145 (1991).
    """
    p, q = np.asarray(first, float), np.asarray(second, float)
    if p.shape != q.shape:
        raise ValueError(f"`first` has shape {p.shape}, `second` {q.shape}")
    for name, values in (("first", p), ("second", q)):
        if not (np.isfinite(values).all() and (values >= 0.0).all() and values.sum() > 0.0):
            raise ValueError(f"`{name}` must be finite, not negative and not all zero")
    p, q = p / p.sum(), q / q.sum()
    mean = 0.5 * (p + q)
    total = 0.0
    for one in (p, q):
        there = one > 0.0
        total += 0.5 * float(np.sum(one[there] * np.log(one[there] / mean[there])))
    return min(max(total, 0.0), math.log(2.0))
