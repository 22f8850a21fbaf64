"""Heat capacities, compressibility and expansion of the ideal gas and of harmonic wells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel import units
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.observables import (
    add_quantities,
    evaluate_frames,
    heat_capacity,
    isothermal_compressibility,
    thermal_expansion,
)
from mosaicmd.kernel.observables.fluctuations import covariance
from mosaicmd.kernel.statistics import reweighting_weights
from mosaicmd.kernel.systems import make_system, pad_system
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

KELVINS = 300.0
KT = KELVINS * units.KELVIN
PRESSURE = 200.0 * units.BAR
GAS_CONSTANT = 8.314459  # J/(mol K), CODATA 2014


def wells(params, system, graph):
    """Every atom in its own harmonic well at the origin: an Einstein crystal."""
    energy = 0.5 * params["k"] * jnp.sum(system.positions**2, axis=1)
    return jnp.where(system.mask, energy, 0.0)


def nothing(params, system, graph):
    return jnp.zeros(system.n_atoms)


def einstein_crystal(n_atoms=8, n_frames=4000, k=2.0):
    """Exact, independent frames, with two masked atoms."""
    system = pad_system(make_system(np.zeros((n_atoms, 3)), 18, cell=12.0), n_atoms + 2)
    normal = jax.random.normal(jax.random.key(3), (n_frames, n_atoms + 2, 3))
    positions = jnp.sqrt(KT / k) * normal
    cells = jnp.broadcast_to(system.cell, (n_frames, 3, 3))
    return Trajectory(system._replace(positions=positions, cell=cells), {}, StatePoint(KT))


def ideal_gas(n_atoms=10, n_frames=6000):
    """Isobaric frames: the volume has the density V^N exp(-P V / kT), a gamma distribution."""
    system = make_system(np.zeros((n_atoms, 3)), 18, cell=10.0)
    gamma = jax.random.gamma(jax.random.key(5), n_atoms + 1.0, (n_frames,))
    edge = (KT / PRESSURE * gamma) ** (1.0 / 3.0)
    # a sheared cell of this volume, as it is the volume that counts
    shape = jnp.array([[1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [-0.2, 0.4, 1.0]])
    positions = jnp.zeros((n_frames, n_atoms, 3))
    cells = edge[:, None, None] * shape[None]
    return Trajectory(
        system._replace(positions=positions, cell=cells), {}, StatePoint(KT, PRESSURE)
    )


def z_score(found, expected):
    value, info = found
    assert info.error < 0.1 * abs(expected)
    return abs(float((value - expected) / info.error))


def test_einstein_crystal_has_three_k_per_atom():
    """Dulong and Petit, 3 R = 24.943 J/(mol K), within 4 sigma; and per mole of molecules."""
    trajectory = einstein_crystal()
    per_atom = heat_capacity(wells, cutoff=3.0, kT=KT)
    per_molecule = heat_capacity(wells, cutoff=3.0, kT=KT, atoms_per_molecule=2, name="molecule")
    rigid = heat_capacity(wells, cutoff=3.0, kT=KT, degrees_per_atom=2.0, name="rigid")
    trajectory = add_quantities([per_atom, per_molecule, rigid], {"k": jnp.array(2.0)}, trajectory)
    assert per_atom.name == "heat_capacity_nvt_j_mol_k"
    found = per_atom(trajectory)
    assert z_score(found, 3.0 * GAS_CONSTANT) < 4.0
    np.testing.assert_allclose(per_molecule(trajectory)[0], 2.0 * found[0], rtol=1e-12)
    np.testing.assert_allclose(rigid(trajectory)[0], found[0] - 0.5 * GAS_CONSTANT, rtol=1e-6)


def test_jackknife_error_of_a_heat_capacity():
    """A variance of n independent normal numbers has the relative error sqrt(2 / n)."""
    trajectory = einstein_crystal(n_atoms=60)
    observable = heat_capacity(wells, cutoff=3.0, kT=KT)
    values = evaluate_frames([observable], {"k": jnp.array(2.0)}, trajectory)[observable.name]
    _, info = observable.estimate(values)
    expected = 1.5 * GAS_CONSTANT * np.sqrt(2.0 / 4000)
    assert 0.5 < info.error / expected < 1.7  # its own error with 16 blocks is 18 %


def test_ideal_gas_at_constant_pressure():
    """C_p = (5 N / 2 + 1) k / N, compressibility 1 / P, expansion 1 / T; 4 sigma."""
    trajectory, n = ideal_gas(), 10
    observables = [
        heat_capacity(nothing, cutoff=1.0, kT=KT, pressure=PRESSURE),
        isothermal_compressibility(kT=KT),
        thermal_expansion(nothing, cutoff=1.0, kT=KT, pressure=PRESSURE),
    ]
    trajectory = add_quantities(observables, None, trajectory)
    expected = [(2.5 + 1.0 / n) * GAS_CONSTANT, units.GPA / PRESSURE, 1.0 / KELVINS]
    for observable, value in zip(observables, expected, strict=True):
        assert z_score(observable(trajectory), value) < 4.0
    assert observables[0].name == "heat_capacity_npt_j_mol_k"
    np.testing.assert_allclose(units.GPA / PRESSURE, 50.0)  # 200 bar are 0.02 GPa
    assert observables[1].cutoff is None
    assert not observables[1].depends_on_params


def test_weights_move_the_gas_to_another_pressure():
    trajectory, higher = ideal_gas(), 1.1 * PRESSURE
    observable = isothermal_compressibility(kT=KT)
    trajectory = add_quantities([observable], None, trajectory)
    volumes = trajectory.quantities[observable.name]
    weights = reweighting_weights((higher - PRESSURE) * volumes / KT)
    assert z_score(observable(trajectory, weights), units.GPA / higher) < 4.0


def test_gradients_in_parameters_and_weights():
    """d C / d k of an Einstein crystal at fixed frames, and in every weight, by differences."""
    trajectory = einstein_crystal(n_atoms=3, n_frames=6)
    systems = trajectory.systems
    graph = host_graph(trajectory.frame(0), 3.0)
    observables = [
        heat_capacity(wells, cutoff=3.0, kT=KT),
        thermal_expansion(wells, cutoff=3.0, kT=KT, pressure=PRESSURE),
    ]
    cells = systems.cell * jnp.linspace(0.9, 1.1, 6)[:, None, None]

    @jax.jit
    def values(k, weights):
        def one(frame):
            system = systems._replace(positions=frame[0], cell=frame[1])
            return [o.per_frame({"k": k}, system, graph, None) for o in observables]

        found = jax.lax.map(one, (systems.positions, cells))
        pairs = zip(observables, found, strict=True)
        return jnp.stack([o.estimate(v, weights)[0] for o, v in pairs])

    k, weights = jnp.array(2.0), jnp.array([0.5, 1.0, 2.0, 0.7, 1.3, 0.9])
    of_k, of_weights = jax.jit(jax.jacrev(values, argnums=(0, 1)))(k, weights)
    h = 1e-5
    expected = (values(k + h, weights) - values(k - h, weights)) / (2.0 * h)
    np.testing.assert_allclose(of_k, expected, rtol=1e-6)
    for i in range(6):
        step = jnp.zeros(6).at[i].set(h)
        expected = (values(k, weights + step) - values(k, weights - step)) / (2.0 * h)
        np.testing.assert_allclose(of_weights[:, i], expected, rtol=1e-5, atol=1e-12)


def test_covariance_is_that_of_numpy():
    rng = np.random.default_rng(0)
    x, y, weights = rng.normal(size=(50, 3)), rng.normal(size=(50, 2)), rng.uniform(size=50)
    weights = weights / weights.sum()
    found = covariance(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weights))
    expected = np.cov(np.hstack([x, y]), rowvar=False, aweights=weights, ddof=0)[:3, 3:]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    single = covariance(jnp.asarray(x[:, 0]), jnp.asarray(y[:, 1]), jnp.asarray(weights))
    np.testing.assert_allclose(single, expected[0, 1], rtol=1e-10)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`kT` of `heat_capacity_nvt_j_mol_k` .* got -1"):
        heat_capacity(nothing, cutoff=1.0, kT=-1.0)
    with pytest.raises(ValueError, match=r"`atoms_per_molecule` of .* got 0"):
        heat_capacity(nothing, cutoff=1.0, kT=KT, atoms_per_molecule=0)
    with pytest.raises(ValueError, match=r"`kT` of `isothermal_compressibility_per_gpa`"):
        isothermal_compressibility(kT=float("nan"))
    with pytest.raises(ValueError, match=r"`kT` of `thermal_expansion_per_kelvin`"):
        thermal_expansion(nothing, cutoff=1.0, kT=0.0, pressure=0.0)
    with pytest.raises(ValueError, match=r"`heat_capacity_nvt_j_mol_k` needs a graph of radius 1"):
        heat_capacity(nothing, cutoff=1.0, kT=KT).per_frame(None, make_gas_frame(), None, None)


def make_gas_frame():
    return ideal_gas(n_frames=2).frame(0)
