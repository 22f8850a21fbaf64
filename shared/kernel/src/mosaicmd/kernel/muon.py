"""Muon: steps along orthogonalised momenta, for networks whose weights are matrices."""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers
from optax.contrib import muon as optax_muon

Params = Any

_RMS = 0.2
"""Root mean square of a step over its learning rate, that of Adam (Liu et al.)."""


def muon(
    learning_rate: optax.ScalarOrSchedule,
    beta: float = 0.95,
    weight_decay: float = 0.0,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
) -> optax.GradientTransformation:
    r"""Muon for every matrix among the parameters, and Adam for all else.

    The momentum ``M`` of a matrix of shape ``[m, n]`` is replaced by the orthogonal matrix next
    to it, found by five Newton-Schulz iterations,

    ``W <- W - learning_rate 0.2 sqrt(max(m, n)) U V^T``,   ``M = U S V^T``,

    so that a step changes all directions alike, and not those of the largest gradient alone. The
    root mean square of its entries is that of a step of Adam, so rates found for Adam are a place
    to start; networks of ours wanted two to eight times that, and MACE learned more slowly than
    with Adam at the same rate. Leaves of more axes are stacks of matrices, their last two axes;
    vectors, and matrices with a side of 1, go with Adam (with Nesterov's momentum).

    Args:
        learning_rate: number or schedule of optax.
        beta: decay of the momentum of matrices.
        weight_decay: of matrices, times the rate.
        adam_b1: of all else.
        adam_b2: of all else.

    References:
        Jordan et al., https://kellerjordan.github.io/posts/muon (2024); Liu et al., "Muon is
        scalable for LLM training", arXiv:2502.16982 (2025), Eq. 4 for the scale.
    """
    return optax_muon(
        learning_rate,
        beta=beta,
        weight_decay=weight_decay,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_learning_rate=learning_rate,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=_RMS,
    )


def _matrices(params: Params) -> Params:
    """The axes of each leaf that is a matrix or a stack of matrices, and ``None`` of others."""

    def axes(leaf: jax.Array) -> MuonDimensionNumbers | None:
        if leaf.ndim < 2 or min(leaf.shape[-2:]) == 1:
            return None
        return MuonDimensionNumbers(reduction_axis=leaf.ndim - 2, output_axis=leaf.ndim - 1)

    return jax.tree.map(axes, params)
