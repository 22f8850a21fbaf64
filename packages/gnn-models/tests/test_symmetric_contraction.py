"""Symmetric products against e3nn's reduced bases, by span, and against rotations."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models.equivariant import natural
from mosaicmd.gnn_models.symmetric_contraction import contract, contraction_to

KINDS = jnp.zeros(80, jnp.int32)


def random_tensors(l_max, seed=0, n_atoms=80, n_channels=1):
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.normal(size=(2 * l + 1, n_atoms, n_channels))) for l in range(l_max + 1)
    ]


def each_coupling(contraction, A):
    """Values of every coupling, ``[K, (2L+1), n_atoms]``."""
    n = len(contraction.couplings)
    units = jnp.eye(n)[:, :, None, None] * np.sqrt(n)
    return np.stack([contract(contraction, unit, A, KINDS)[..., 0] for unit in units])


@pytest.mark.parametrize(("L", "l_max"), [(0, 3), (1, 2), (2, 2)])
def test_products_span_what_e3nn_finds(L, l_max):
    """For each order: as many, and each a combination of e3nn's, the same for all components."""
    contraction = contraction_to(L, l_max, 3)
    A = random_tensors(l_max)
    values = each_coupling(contraction, A)
    stacked = np.concatenate([np.asarray(a)[..., 0] for a in A])  # [(l_max+1)², n_atoms]
    irreps = e3nn.Irreps("+".join(natural(l) for l in range(l_max + 1)))
    letters = "abc"
    for order in (1, 2, 3):
        mine = [k for k, c in enumerate(contraction.couplings) if c.order == order]
        if order == 1:
            expected = np.asarray(A[L])[None, ..., 0]
        else:
            basis = e3nn.reduced_symmetric_tensor_product_basis(
                irreps, order, keep_ir=[e3nn.Irrep(natural(L))]
            )
            indices = letters[:order]
            formula = f"{indices}kM,{','.join(f'{i}n' for i in indices)}->kMn"
            with jax.numpy_rank_promotion("allow"):
                chunk = np.asarray(basis.chunks[0])
            expected = np.einsum(formula, chunk, *[stacked] * order, optimize=True)
        assert len(mine) == len(expected)
        flat, target = (x.reshape(len(mine), -1).T for x in (values[mine], expected))
        assert np.linalg.matrix_rank(flat) == len(mine)
        solution = np.linalg.lstsq(target, flat, rcond=None)[0]
        np.testing.assert_allclose(target @ solution, flat, atol=1e-6 * np.abs(flat).max())


def test_number_of_invariants():
    """Degrees that couple to a scalar of even parity: 000 011 022 033 112 123 222 233."""
    couplings = contraction_to(0, 3, 3).couplings
    triples = {tuple(sorted((c.l1, c.l2, c.l3))) for c in couplings if c.order == 3}
    expected = {(0, 0, 0), (0, 1, 1), (0, 2, 2), (0, 3, 3), (1, 1, 2), (1, 2, 3), (2, 2, 2)}
    assert triples == expected | {(2, 3, 3)}
    assert [sum(c.order == n for c in couplings) for n in (1, 2, 3)] == [1, 4, 8]


@pytest.mark.parametrize("L", [0, 1, 2])
def test_products_turn_as_they_should(L):
    A = random_tensors(2)
    contraction = contraction_to(L, 2, 3)
    with jax.numpy_rank_promotion("allow"):
        R = e3nn.rand_matrix(jax.random.key(0), ())
        D = [e3nn.Irrep(natural(l)).D_from_matrix(R) for l in range(3)]
    turned = [jnp.einsum("mk,knc->mnc", D[l], a) for l, a in enumerate(A)]
    expected = np.einsum("mk,Kkn->Kmn", D[L], each_coupling(contraction, A))
    np.testing.assert_allclose(each_coupling(contraction, turned), expected, atol=1e-6)
    mirrored = [(-1.0) ** l * a for l, a in enumerate(A)]
    expected = (-1.0) ** L * each_coupling(contraction, A)
    np.testing.assert_allclose(each_coupling(contraction, mirrored), expected, atol=1e-12)


def test_products_are_of_order_one():
    """Mean squares over 20 000 independent standard normal tensors, each coupling by itself."""
    n = 20_000
    contraction = contraction_to(1, 2, 3)
    A = random_tensors(2, n_atoms=n)
    units = np.sqrt(len(contraction.couplings)) * jnp.eye(len(contraction.couplings))
    kinds = jnp.zeros(n, jnp.int32)
    for unit in units[:, :, None, None]:
        square = np.asarray(contract(contraction, unit, A, kinds) ** 2).mean()
        assert 0.8 < square < 4.0  # traces add to the variance of the symmetric part


def test_each_species_has_its_weights():
    contraction = contraction_to(1, 2, 2)
    A = random_tensors(2, n_atoms=3, n_channels=2)
    n = len(contraction.couplings)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(n, 2, 2)))
    kinds = jnp.array([1, 0, 1])
    found = contract(contraction, weights, A, kinds)
    for kind in (0, 1):
        alone = contract(contraction, weights[:, kind : kind + 1], A, jnp.zeros(3, jnp.int32))
        mine = np.flatnonzero(kinds == kind)
        np.testing.assert_allclose(found[:, mine], alone[:, mine], rtol=1e-12)


def test_one_factor_is_the_tensor_itself():
    A = random_tensors(1)
    contraction = contraction_to(1, 1, 1)
    assert len(contraction.couplings) == 1
    np.testing.assert_array_equal(contract(contraction, jnp.ones((1, 1, 1)), A, KINDS), A[1])
