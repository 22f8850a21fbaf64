"""Symmetric powers of spherical tensors: the many-body features of MACE.

A degree-``l`` tensor ``A_l`` per atom and channel, for all ``l`` up to ``l_max``, is multiplied
with itself up to three times and coupled to a total degree ``L``. Products in other orders
give the same numbers, and some couplings are sums of others, so a basis is selected: among all
couplings ``((A_l1 A_l2)_l12 A_l3)_L`` the cheapest ones that are linearly independent once
symmetrised. Their span is that of all symmetric products with the parity of ``L``.
"""

from __future__ import annotations

import functools
import itertools
from math import factorial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.gnn_models.equivariant import clebsch_gordan, constant_product

Array = jax.Array

_INDEPENDENT = 1e-8
"""Least squared share of a coupling that is not a sum of those selected before."""


class Coupling(NamedTuple):
    """One symmetric product ``((A_l1 A_l2)_l12 A_l3)_L``.

    With two factors, ``(A_l1 A_l2)_L``, ``l3`` is ``None``; with one also ``l2`` is. Then ``l12``
    is ``l1``.
    """

    l1: int
    l2: int | None
    l12: int
    l3: int | None
    scale: float  # gives the symmetrised tensor the squared norm 1 / (number of factors)!

    @property
    def order(self) -> int:
        """Number of factors."""
        return 1 + (self.l2 is not None) + (self.l3 is not None)

    @property
    def last(self) -> int:
        """Degree of the last factor."""
        return next(l for l in (self.l3, self.l2, self.l1) if l is not None)


class Contraction(NamedTuple):
    """Constants that evaluate all couplings to one degree ``L``, of which there are K.

    Rows are components of what the last factor is coupled to: first of pairs ``(l1, l2)``,
    block by block, then of single tensors.
    """

    couplings: tuple[Coupling, ...]
    blocks: tuple[tuple[int, int, np.ndarray], ...]  # l1, l2, [n_rows, (2 l1 + 1) (2 l2 + 1)]
    singles: tuple[int, ...]
    expand: np.ndarray  # [n_rows, K - 1]: which coupling a row belongs to
    last: np.ndarray  # [(2L+1) (l_max+1)², n_rows]: coupling with the last factor


def contract(contraction: Contraction, weights: Array, A: list[Array], kinds: Array) -> Array:
    """Weighted sum of all symmetric products of ``A`` with one total degree.

    Args:
        contraction: from :func:`contraction_to`.
        weights: per coupling and species, ``[K, n_species, n_channels]``.
        A: by degree ``[2l+1, n_atoms, n_channels]``.
        kinds: index of the species of every atom, ``[n_atoms]``.

    Returns:
        ``[2L+1, n_atoms, n_channels]``; of mean square one for standard normal weights and
        independent standard normal ``A``, up to correlations between couplings.
    """
    shape = A[0].shape[1:]
    flat = [values.reshape(2 * l + 1, -1) for l, values in enumerate(A)]
    w = (weights * len(contraction.couplings) ** -0.5)[:, kinds].reshape(len(weights), -1)
    linear = contraction.couplings[-1]
    result = linear.scale * w[-1:] * flat[linear.l1]
    if len(contraction.couplings) > 1:
        rows = []
        for l1, l2, matrix in contraction.blocks:
            pairs = (flat[l1][:, None] * flat[l2][None]).reshape(matrix.shape[1], -1)
            rows.append(constant_product(matrix, pairs))
        rows.extend(flat[l] for l in contraction.singles)
        weighted = jnp.concatenate(rows) * constant_product(contraction.expand, w[:-1])
        factor = jnp.concatenate(flat)
        partial = constant_product(contraction.last, weighted).reshape(-1, *factor.shape)
        result = result + jnp.sum(partial * factor[None], axis=1)
    return result.reshape(-1, *shape)


@functools.cache
def contraction_to(L: int, l_max: int, correlation: int) -> Contraction:
    """All independent symmetric products of up to ``correlation`` factors with degree ``L``.

    Args:
        L: total degree, at most ``l_max``; its parity is ``(-1)^L``.
        l_max: highest degree of the factors.
        correlation: largest number of factors, 1 to 3.
    """
    triples = _triples(L, l_max) if correlation > 2 else ()
    pairs = _pairs(L, l_max) if correlation > 1 else ()
    triples = tuple(sorted(triples, key=lambda c: (c.l1, c.l2)))
    blocks, expand_rows, last = [], [], []
    size = (l_max + 1) ** 2
    couplings = (*triples, *pairs, Coupling(L, None, L, None, 1.0))
    for (l1, l2), group in itertools.groupby(triples, key=lambda c: (c.l1, c.l2)):
        matrices = [
            clebsch_gordan(l1, l2, c.l12).reshape(-1, 2 * c.l12 + 1).T * c.scale for c in group
        ]
        blocks.append((l1, l2, np.concatenate(matrices)))
    for k, coupling in enumerate((*triples, *pairs)):
        l12, l3 = coupling.l12, coupling.last
        scale = 1.0 if coupling.order == 3 else coupling.scale
        table = np.zeros((2 * L + 1, size, 2 * l12 + 1))
        table[:, l3**2 : (l3 + 1) ** 2] = scale * clebsch_gordan(l12, l3, L).transpose(2, 1, 0)
        last.append(table.reshape(-1, 2 * l12 + 1))
        expand_rows.extend([k] * (2 * l12 + 1))
    return Contraction(
        couplings=couplings,
        blocks=tuple(blocks),
        singles=tuple(c.l1 for c in pairs),
        expand=np.eye(len(couplings) - 1)[expand_rows],
        last=np.concatenate(last, axis=1) if last else np.zeros((0, 0)),
    )


def _pairs(L: int, l_max: int) -> tuple[Coupling, ...]:
    """Independent symmetric products of two tensors."""
    found = []
    for l1, l2 in itertools.combinations_with_replacement(range(l_max + 1), 2):
        if (l1 + l2 + L) % 2 == 0 and l2 - l1 <= L <= l1 + l2:
            tensor = _symmetrised(_placed(clebsch_gordan(l1, l2, L)[..., 0], (l1, l2), l_max))
            scale = (factorial(2) * np.sum(tensor**2)) ** -0.5
            found.append(Coupling(l1, l2, l1, None, float(scale)))
    return tuple(found)


def _triples(L: int, l_max: int) -> tuple[Coupling, ...]:
    """Independent symmetric products of three tensors, cheap ones first.

    By Schur's lemma it is enough to compare the first component of each.
    """
    degrees = range(l_max + 1)
    candidates = [
        (l1, l2, l12, l3)
        for l1, l2 in itertools.combinations_with_replacement(degrees, 2)
        for l12 in range(l2 - l1, l1 + l2 + 1)
        for l3 in range(abs(L - l12), min(L + l12, l_max) + 1)
        if (l1 + l2 + l3 + L) % 2 == 0 and not (l1 == l2 and l12 % 2)
    ]
    rows = (2 * l_max + 1) ** 2
    candidates.sort(key=lambda c: ((2 * c[2] + 1) * (rows + (2 * c[0] + 1) * (2 * c[1] + 1)), c))
    found: list[Coupling] = []
    basis = np.zeros((0, (l_max + 1) ** 6))
    for l1, l2, l12, l3 in candidates:
        tensor = np.einsum(
            "abm,mc->abc", clebsch_gordan(l1, l2, l12), clebsch_gordan(l12, l3, L)[..., 0]
        )
        vector = _symmetrised(_placed(tensor, (l1, l2, l3), l_max)).ravel()
        squared = vector @ vector
        if squared < _INDEPENDENT:
            continue
        rest = vector - basis.T @ (basis @ vector)
        rest = rest - basis.T @ (basis @ rest)
        if rest @ rest > _INDEPENDENT * squared:
            found.append(Coupling(l1, l2, l12, l3, float((factorial(3) * squared) ** -0.5)))
            basis = np.vstack([basis, rest / np.sqrt(rest @ rest)])
    return tuple(found)


def _placed(tensor: np.ndarray, degrees: tuple[int, ...], l_max: int) -> np.ndarray:
    """The tensor as a block of that of all degrees."""
    result = np.zeros(((l_max + 1) ** 2,) * len(degrees))
    result[tuple(slice(l**2, (l + 1) ** 2) for l in degrees)] = tensor
    return result


def _symmetrised(tensor: np.ndarray) -> np.ndarray:
    """The mean over all orders of the axes."""
    orders = list(itertools.permutations(range(tensor.ndim)))
    return np.mean([tensor.transpose(order) for order in orders], axis=0)
