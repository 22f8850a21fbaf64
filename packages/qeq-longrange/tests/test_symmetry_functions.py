"""Symmetry functions against sums over pairs written out."""

import jax
import numpy as np
import pytest

from mosaicmd.gnn_models.cutoffs import polynomial_switch
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.testing import random_system
from mosaicmd.qeq_longrange import SymmetryFunctionsConfig, symmetry_functions


def test_functions_are_the_sums_over_neighbors_and_over_pairs_of_them():
    config = SymmetryFunctionsConfig(species=(8, 1), cutoff=4.0, n_radial=3, angular_widths=(2.0,))
    system = random_system(2, n_atoms=7)
    graph = host_graph(system, config.cutoff + 0.5)
    found = np.asarray(jax.jit(lambda s, g: symmetry_functions(config, s, g))(system, graph))
    assert found.shape == (7, config.n_functions)
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    vectors = np.asarray(system.positions)[senders] - np.asarray(system.positions)[receivers]
    vectors += np.asarray(graph.shifts) @ np.asarray(system.cell)
    r = np.linalg.norm(vectors, axis=1)
    f = np.asarray(polynomial_switch(r, 0.0, 4.0))
    kind = np.asarray(system.species)[senders]
    for atom in range(7):
        own = [e for e in np.flatnonzero(receivers == atom) if r[e] < 4.0]
        expected = []
        for center in (0.8, 2.4, 4.0):
            for species in (8, 1):
                gauss = [np.exp(-0.5 * ((r[e] - center) / 1.6) ** 2) * f[e] for e in own]
                expected.append(
                    sum(g for g, e in zip(gauss, own, strict=True) if kind[e] == species)
                )
        for pair in ([8, 8], [1, 8], [1, 1]):
            for zeta in (1, 2, 4):
                for sign in (1, -1):
                    total = 0.0
                    for a, j in enumerate(own):
                        for k in own[:a]:
                            if sorted((kind[j], kind[k])) == pair:
                                cos = vectors[j] @ vectors[k] / r[j] / r[k]
                                g = np.exp(-(r[j] ** 2 + r[k] ** 2) / 4.0) * f[j] * f[k]
                                total += 2.0 ** (1 - zeta) * (1 + sign * cos) ** zeta * g
                    expected.append(total)
        np.testing.assert_allclose(found[atom], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zetas": (0,)}, "`zetas` must be from 1 to 8"),
        ({"first_center": 5.0}, "`first_center` 5.0 must be below"),
        ({"angular_widths": (0.0,)}, "`angular_widths` must be positive"),
        ({"species": (1, 1)}, "distinct positive labels"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SymmetryFunctionsConfig(**{"species": (1, 8), "cutoff": 4.0, **change})


def test_single_precision_stays_single():
    config = SymmetryFunctionsConfig(species=(8, 1), cutoff=4.0, n_radial=3, angular_widths=(2.0,))
    system = random_system(2, n_atoms=7)
    graph = host_graph(system, config.cutoff)
    single = jax.tree.map(lambda x: np.float32(x) if x.dtype == np.float64 else x, (system, graph))
    found = jax.jit(lambda s, g: symmetry_functions(config, s, g))(*single)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, symmetry_functions(config, system, graph), atol=1e-5)


def test_second_derivatives_are_finite_along_an_axis():
    """Two neighbors on axes; forces follow the differences of forces nearby."""
    settings = {"n_radial": 2, "angular_widths": (2.0,), "zetas": (1, 2)}
    config = SymmetryFunctionsConfig(species=(1,), cutoff=4.0, **settings)
    places = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.2, 0.0]])
    system = make_system(places, [1, 1, 1])
    graph = host_graph(system, config.cutoff)

    def slope(positions):
        """Of a function of all, along one direction."""
        moved = system._replace(positions=positions)
        return jax.grad(
            lambda r: symmetry_functions(config, moved._replace(positions=r), graph).sum()
        )(positions)

    step = jax.random.normal(jax.random.key(0), (3, 3))
    slope = jax.jit(slope)
    _, change = jax.jvp(slope, (system.positions,), (step,))
    ahead, behind = (slope(system.positions + sign * 1e-5 * step) for sign in (1.0, -1.0))
    np.testing.assert_allclose(change, (ahead - behind) / 2e-5, atol=1e-6)
