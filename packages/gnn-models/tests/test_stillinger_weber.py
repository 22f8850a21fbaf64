"""Stillinger–Weber silicon at T = 0, the direct double sum, and the contract."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from mosaicmd.gnn_models import (
    StillingerWeberPairConfig,
    ThreeBodyConfig,
    stillinger_weber,
    stillinger_weber_pair,
    three_body,
)
from mosaicmd.gnn_models.stillinger_weber import build_pair, build_three_body
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential, evaluate, total_energy
from mosaicmd.kernel.systems import from_ase
from mosaicmd.kernel.testing import check_potential, random_system

SILICON = stillinger_weber(epsilon=2.16826, sigma=2.0951, species=(14,))
WATER = ThreeBodyConfig(
    cutoff=4.31, decay_length=2.871, strength=0.5, cos_angle=-0.4, learn_decay=True
)


def silicon_energy(lattice):
    system = from_ase(ase.build.bulk("Si", a=lattice))
    graph = host_graph(system, SILICON.cutoff)
    params = SILICON.init(jax.random.key(0))
    return float(total_energy(SILICON.energy, params, system, graph)) / 2.0


def test_silicon_has_the_published_lattice_constant_and_cohesive_energy():
    """5.43095 Å and -4.33652 eV/atom (Balamane, Halicioglu & Tiller, PRB 46, 2250 (1992))."""
    bounds, options = (5.3, 5.6), {"xatol": 1e-8}
    found = minimize_scalar(silicon_energy, bounds=bounds, method="bounded", options=options)
    np.testing.assert_allclose(found.x, 5.43095, atol=1e-5)
    np.testing.assert_allclose(found.fun, -4.33652, atol=2e-5)


def test_stress_of_silicon_vanishes_at_its_lattice_constant():
    system = from_ase(ase.build.bulk("Si", a=5.43095, cubic=True))
    graph = host_graph(system, SILICON.cutoff)
    params = SILICON.init(jax.random.key(0))
    result = evaluate(SILICON.energy, params, system, graph, stress=True)
    assert np.abs(result.stress).max() < 1e-6
    assert np.abs(result.forces).max() < 1e-12


def test_moments_equal_the_double_sum_over_neighbors():
    """sum_{j<k} (cos theta - c0)² f f by loops over pairs of edges, to rounding."""
    system = random_system(3, species=(14,))
    graph = host_graph(system, WATER.cutoff)
    potential = three_body(WATER)
    params = potential.init(jax.random.key(0))
    found = potential.energy(params, system, graph)
    positions, cell = np.asarray(system.positions), np.asarray(system.cell)
    shifts = np.asarray(graph.shifts) @ cell
    vectors = positions[graph.senders] - positions[graph.receivers] + shifts
    lengths = np.linalg.norm(vectors, axis=1)
    decay = np.exp(WATER.decay_length / (lengths - WATER.cutoff))
    expected = np.zeros(system.n_atoms)
    for e in range(len(lengths)):
        for other in range(e + 1, len(lengths)):
            if graph.receivers[e] == graph.receivers[other]:
                cosine = vectors[e] @ vectors[other] / (lengths[e] * lengths[other])
                term = (cosine - WATER.cos_angle) ** 2 * decay[e] * decay[other]
                expected[graph.receivers[e]] += WATER.strength * term
    assert expected.max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(
    "potential",
    [
        SILICON,
        three_body(WATER),
        stillinger_weber_pair(StillingerWeberPairConfig(epsilon=2.1683, sigma=2.0951)),
    ],
    ids=["silicon", "three-body", "pair"],
)
def test_contract(potential):
    system = random_system(0, species=(14,))
    check_potential(potential, potential.init(jax.random.key(0)), system)


def test_decay_is_a_parameter_only_on_request():
    fixed = three_body(WATER.model_copy(update={"learn_decay": False}))
    assert set(fixed.init(jax.random.key(0))) == {"log_strength", "cos_angle"}
    assert "decay" in three_body(WATER).init(jax.random.key(0))


def test_a_model_is_rebuilt_from_its_record():
    again = build_potential(SILICON.architecture, SILICON.config)
    assert again.cutoff == SILICON.cutoff
    assert again.species == (14,)
    system = random_system(1, species=(14,))
    graph = host_graph(system, SILICON.cutoff)
    params = SILICON.init(jax.random.key(0))
    np.testing.assert_array_equal(
        again.energy(params, system, graph), SILICON.energy(params, system, graph)
    )
    assert build_three_body(three_body(WATER).config).cutoff == WATER.cutoff
    assert build_pair({"epsilon": "1 kcal_mol", "sigma": "0.2 nm"}).cutoff == 3.6


def test_unknown_species_are_named_with_the_remedy():
    system = from_ase(ase.build.bulk("Ge", a=5.6))
    with pytest.raises(ValueError, match=r"`species` \[32\] .* made for \[14\]; relabel"):
        SILICON.check(system)
    assert jnp.isfinite(SILICON.cutoff)
