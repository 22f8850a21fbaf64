"""Embedding energies against ASE, the lattice sums of Sutton and Chen, and the contract."""

import json

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.eam import EAM
from scipy.interpolate import BSpline

from mosaicmd.gnn_models import (
    PairSplineConfig,
    PowerEmbeddingConfig,
    SplineEmbeddingConfig,
    pair_spline,
    power_embedding,
    spline_embedding,
    sutton_chen,
)
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential, evaluate, sum_potentials
from mosaicmd.kernel.systems import from_ase, make_system, to_ase
from mosaicmd.kernel.testing import check_potential, random_system

SPLINE = SplineEmbeddingConfig(
    cutoff=5.0, distance=2.5, strength=0.8, r_min=1.5, n_amplitude=12, s_max=4.0, species=(29, 28)
)
POWER = PowerEmbeddingConfig(
    strength=(0.5, 0.4), distance=(3.6, 3.5, 3.4), exponent=6.0, cutoff=5.0, species=(29, 28)
)


def perturbed(potential, scale=0.1, seed=0):
    """Parameters that no symmetry between curves survives in."""
    rng = np.random.default_rng(seed)
    params = potential.init(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf * (1.0 + scale * rng.normal(size=leaf.shape)), params)


@pytest.mark.parametrize("potential", [spline_embedding(SPLINE), power_embedding(POWER)])
def test_contract(potential):
    system = random_system(0, species=(28, 29), min_distance=1.3)
    check_potential(potential, perturbed(potential), system)


def test_one_pair_of_curves_serves_all_species_or_each():
    """Without ``species`` as with equal curves for every one of them."""
    system = random_system(0, species=(28, 29))
    graph = host_graph(system, 5.0)
    one = spline_embedding(SPLINE.model_copy(update={"species": None}))
    params = perturbed(one)
    copies = {
        "amplitude": jnp.tile(params["amplitude"], (4, 1)),
        "embedding": jnp.tile(params["embedding"], (2, 1)),
    }
    expected = jax.jit(spline_embedding(SPLINE).energy)(copies, system, graph)
    np.testing.assert_allclose(jax.jit(one.energy)(params, system, graph), expected, rtol=1e-12)


def test_initial_energy_by_the_closed_form():
    """``-A sqrt(sum_j ((r_c - r) / (r_c - d))^6)``; a line below ``r_min``, ``-A s`` beyond."""
    potential = spline_embedding(SPLINE)
    params, energy = potential.init(jax.random.key(0)), jax.jit(potential.energy)
    for places in ([1.6], [3.9], [2.5, -4.0], [1.55, -1.6, 4.9]):
        system = make_system(np.outer([0.0, *places], [1.0, 0.0, 0.0]), 29)
        found = energy(params, system, host_graph(system, 5.0))[0]
        expected = -0.8 * np.sqrt(np.sum(((5.0 - np.abs(places)) / 2.5) ** 6))
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    embeddings = []
    for distance in (0.2, 0.3, 0.4):  # three intervals below r_min the amplitude is a line
        system = make_system([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]], 29)
        embeddings.append(energy(params, system, host_graph(system, 5.0))[0])
    assert embeddings[0] < -0.8 * 4.0  # beyond s_max
    np.testing.assert_allclose(np.diff(embeddings, n=2), 0.0, atol=1e-12)


def ase_calculator(embedding, embedding_params, pair, pair_params):
    """ASE's Finnis–Sinclair form with curves from SciPy and numerical derivatives."""
    dr, ds = 3.5 / 12, 4.0 / 16
    n = len(embedding.species)

    def amplitude(receiver, sender):
        row = np.asarray(embedding_params["amplitude"])[receiver * n + sender]
        spline = BSpline(1.5 + dr * np.arange(-3, 16), np.pad(row, (0, 3)), 3)
        return lambda r: np.where(r < 5.0, spline(np.minimum(r, 5.0)), 0.0)

    def embed(kind):
        row = np.asarray(embedding_params["embedding"])[kind]
        spline = BSpline(ds * np.arange(-3, 20), row, 3)
        return lambda rho: spline(np.sqrt(rho)) - spline(0.0)

    def pair_energy(index):
        row = np.pad(np.asarray(pair_params["coefficients"])[index], 3)
        spline = BSpline(1.0 + pair.spacing * np.arange(-3, pair.n_coefficients + 7), row, 3)
        return lambda r: np.where(r < 5.0, spline(np.minimum(r, 5.0)), 0.0)

    def derivative(function, h=1e-5):
        return lambda x: (function(x + h) - function(x - h)) / (2.0 * h)

    def squared(function):
        return lambda r: function(r) ** 2

    density = np.empty((n, n), object)  # [of the sender, at the receiver]
    phi = np.empty((n, n), object)
    for i in range(n):
        for j in range(n):
            density[j, i] = squared(amplitude(i, j))
            phi[i, j] = pair_energy(min(i, j) + max(i, j))  # 0, 1, 2
    embeds = np.array([embed(kind) for kind in range(n)])
    slopes = np.vectorize(derivative, otypes=[object])
    return EAM(
        elements=["Cu", "Ni"],
        form="fs",
        cutoff=5.0,
        embedded_energy=embeds,
        electron_density=density,
        phi=phi,
        d_embedded_energy=slopes(embeds),
        d_electron_density=slopes(density),
        d_phi=slopes(phi),
        skin=0.0,
    )


def test_ase_has_the_same_energy_and_forces_for_an_alloy():
    """Different curves for every ordered pair of species; ASE differentiates numerically."""
    system = random_system(1, species=(28, 29), n_atoms=14, min_distance=1.8)
    pair = PairSplineConfig(cutoff=5.0, r_min=1.0, n_coefficients=12, species=(29, 28))
    potential = sum_potentials(pair_spline(pair), spline_embedding(SPLINE))
    rng = np.random.default_rng(2)
    params = (
        {"coefficients": jnp.asarray(rng.normal(scale=0.3, size=(3, 12)))},
        perturbed(spline_embedding(SPLINE)),
    )
    result = evaluate(potential.energy, params, system, host_graph(system, 5.0))
    atoms = to_ase(system)
    atoms.calc = ase_calculator(SPLINE, params[1], pair, params[0])
    np.testing.assert_allclose(result.energy, atoms.get_potential_energy(), rtol=1e-11)
    np.testing.assert_allclose(result.forces, atoms.get_forces(), atol=1e-7)


# Metal: epsilon (eV), a (Å), c, n, m of Sutton & Chen (1990), Table 1.
METALS = {
    "Cu": (1.2382e-2, 3.61, 39.432, 9.0, 6.0),
    "Au": (1.2793e-2, 4.08, 34.408, 10.0, 8.0),
}
COHESIVE = {"Cu": 3.49, "Au": 3.81}  # Kittel, 8th ed., ch. 3, Table 1, eV/atom


@pytest.mark.parametrize("metal", METALS)
def test_metals_have_the_published_lattice_constant_and_the_bulk_modulus_of_lattice_sums(metal):
    """At ``a`` the stress vanishes and ``B = n m E_c / (18 v)`` (their Eq. 6), up to the cutoff.

    Both follow from ``c = n S_n / (m sqrt(S_m))`` with infinite lattice sums. Beyond ``R``
    (in units of ``a``) ``S_m`` lacks ``16 pi R^(3-m) / (m-3)``, which for m = 6 and R = 10
    is 1.5e-4 of it, and its second derivative a few times more.
    """
    epsilon, a, c, n, m = METALS[metal]
    potential = sutton_chen(epsilon=epsilon, a=a, c=c, n=n, m=m, cutoff=10.5 * a, onset=10.0 * a)
    system = from_ase(ase.build.bulk(metal, "fcc", a=a))
    graph = host_graph(system, potential.cutoff)
    params = potential.init(jax.random.key(0))

    @jax.jit
    def energy(scale):
        scaled = system._replace(cell=scale * system.cell)
        return jnp.sum(potential.energy(params, scaled, graph))

    depth = -energy(1.0)
    np.testing.assert_allclose(depth, COHESIVE[metal], rtol=0.01)  # experiment, which they fitted
    curvature = jax.grad(jax.grad(energy))(1.0)
    found = float(curvature / (9.0 * a**3 / 4.0))
    np.testing.assert_allclose(found, n * m * depth / (18.0 * a**3 / 4.0), rtol=2e-3)
    slope = jax.grad(energy)(1.0)
    assert abs(slope / curvature) < 3e-4  # how far the lattice constant is off, relative


def test_ordered_pairs_of_species_have_their_own_amplitudes():
    potential = spline_embedding(SPLINE)
    params = potential.init(jax.random.key(0))
    scale = jnp.array([1.0, 2.0, 3.0, 4.0])[:, None]  # Cu-Cu, Cu of Ni, Ni of Cu, Ni-Ni
    params = {**params, "amplitude": params["amplitude"] * scale}
    g = ((5.0 - 3.7) / 2.5) ** 3
    for pair, factors in (((29, 29), (1, 1)), ((29, 28), (2, 3)), ((28, 28), (4, 4))):
        system = make_system([[0.0, 0.0, 0.0], [3.7, 0.0, 0.0]], np.array(pair))
        found = potential.energy(params, system, host_graph(system, 5.0))
        np.testing.assert_allclose(found, -0.8 * g * np.array(factors), rtol=1e-12)


@pytest.mark.parametrize("potential", [spline_embedding(SPLINE), power_embedding(POWER)])
def test_configuration_round_trip(potential):
    record = json.loads(json.dumps(potential.config))
    again = build_potential(potential.architecture, record)
    assert again.config == potential.config
    assert (again.cutoff, again.species) == (5.0, (29, 28))


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("spline_embedding", {"r_min": 5.0}, "`r_min` 5.0 must be below cutoff=5.0"),
        ("spline_embedding", {"distance": 6.0}, "`distance` 6.0 must be below cutoff=5.0"),
        ("spline_embedding", {"n_amplitude": 3}, "n_amplitude: got 3"),
        ("spline_embedding", {"species": [29, 29]}, "distinct positive labels"),
        ("spline_embedding", {"strenght": 1.0}, "did you mean `strength`"),
        ("power_embedding", {"strength": [0.1, 0.2]}, "`strength` has 2 values"),
        ("power_embedding", {"distance": -1.0}, "`distance` must be positive"),
        ("power_embedding", {"onset": 5.0}, "`onset` 5.0 must lie in"),
    ],
)
def test_bad_settings_are_refused(architecture, change, message):
    settings = {"cutoff": 5.0, "distance": 2.5, "strength": 1.0}
    if architecture == "power_embedding":
        settings["exponent"] = 6.0
    with pytest.raises(ConfigError, match=message):
        build_potential(architecture, {**settings, **change})
