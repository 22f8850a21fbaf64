"""Minimisation against closed forms and ASE's."""

import itertools

import ase.build
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.graphs import edge_vectors, sum_edges
from mosaicmd.kernel.minimize import ConvergenceError, minimize
from mosaicmd.kernel.systems import from_ase, make_system, pad_system, to_ase, volume
from mosaicmd.kernel.units import GPA

CUTOFF = 8.0
ARGON = {"sigma": jnp.asarray(3.405), "epsilon": jnp.asarray(0.0104)}


def lennard_jones(params, system, graph):
    """Truncated and shifted, as ``ase.calculators.lj``."""
    square = jnp.sum(edge_vectors(system, graph) ** 2, axis=-1)
    sixth, last = ((params["sigma"] ** 2 / s) ** 3 for s in (square, CUTOFF**2))
    energy = 2.0 * params["epsilon"] * (sixth**2 - sixth - last**2 + last)
    return sum_edges(jnp.where(square < CUTOFF**2, energy, 0.0), graph, system.n_atoms)


def relax(system, **settings):
    return minimize(lennard_jones, ARGON, system, **{"cutoff": CUTOFF} | settings)


def shaken(atoms, seed=0, strain=0.03, displacement=0.15):
    """A copy with a random strain of its cell and random displacements."""
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    deformation = np.eye(3) + rng.uniform(-strain, strain, (3, 3))
    atoms.set_cell(atoms.cell.array @ (0.5 * (deformation + deformation.T)), scale_atoms=True)
    atoms.positions += rng.normal(0.0, displacement, atoms.positions.shape)
    return atoms


def lattice_sum(edge):
    """Energy per atom and pressure of fcc by summing over the shells within the cutoff."""
    corners = np.array(list(itertools.product(range(-3, 4), repeat=3)), float)
    basis = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    squares = np.sum((corners[:, None] + basis).reshape(-1, 3) ** 2, axis=1) * edge**2
    squares = squares[(squares > 1e-9) & (squares < CUTOFF**2)]
    sixth, last = ((3.405**2 / s) ** 3 for s in (squares, CUTOFF**2))
    energy = 0.5 * 0.0416 * np.sum(sixth**2 - sixth - last**2 + last)
    virial = 0.5 * 0.0416 * np.sum(12.0 * sixth**2 - 6.0 * sixth)
    return energy, virial / (3.0 * edge**3 / 4.0)


@pytest.mark.parametrize("pressure", [0.0, 0.5 * GPA])
@pytest.mark.parametrize("cell", ["isotropic", "flexible"])
def test_argon_relaxes_to_the_lattice_sum(cell, pressure):
    """fcc at the edge where the sum over shells has the wanted pressure, to 1e-5 Å."""
    from scipy.optimize import brentq

    edge = brentq(lambda a: lattice_sum(a)[1] - pressure, 4.9, 5.5, xtol=1e-12)
    perfect = ase.build.bulk("Ar", "fcc", a=5.4, cubic=True) * (2, 2, 2)
    system = from_ase(shaken(perfect, strain=0.03 if cell == "flexible" else 0.0))
    found = relax(
        system, cell=cell, pressure=pressure, max_force=1e-6, max_stress=1e-9, max_steps=1000
    )
    np.testing.assert_allclose(volume(found.system), (2.0 * edge) ** 3, rtol=3e-6)
    np.testing.assert_allclose(found.energy / 32, lattice_sum(edge)[0], rtol=1e-8)
    np.testing.assert_allclose(found.stress, -pressure * np.eye(3), atol=1e-9)
    lengths = np.linalg.norm(found.system.cell, axis=1)
    np.testing.assert_allclose(lengths, 2.0 * edge, rtol=1e-5)
    assert found.max_force <= 1e-6
    assert found.max_stress <= 1e-9
    assert found.n_steps < 400


def test_a_cluster_relaxes_to_the_icosahedron():
    """LJ13: -44.326801 epsilon (Cambridge Cluster Database; Hoare & Pal, 1971)."""
    from ase.cluster import Icosahedron

    atoms = Icosahedron("Ar", 2, latticeconstant=5.6)
    atoms.positions += np.random.default_rng(1).normal(0.0, 0.1, atoms.positions.shape)
    system = pad_system(make_system(atoms.positions, 18), 16)
    last = (3.405 / 100.0) ** 6

    def far(params, system, graph):
        square = jnp.sum(edge_vectors(system, graph) ** 2, axis=-1)
        sixth = (params["sigma"] ** 2 / square) ** 3
        return sum_edges(2.0 * params["epsilon"] * (sixth**2 - sixth), graph, system.n_atoms)

    found = minimize(far, ARGON, system, cutoff=100.0, max_force=1e-6)
    np.testing.assert_allclose(found.energy / 0.0104, -44.326801, atol=2e-6 + 78 * 4 * last)
    np.testing.assert_array_equal(found.system.positions[13:], system.positions[13:])
    assert found.stress is None
    assert found.max_stress == 0.0


@pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning:ase")
def test_ase_finds_the_same_minimum():
    """A vacancy in a sheared cell, by ASE's FIRE with its own Lennard-Jones."""
    from ase.calculators.lj import LennardJones
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    atoms = ase.build.bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2)
    del atoms[5]
    atoms = shaken(atoms, strain=0.02, displacement=0.05)
    found = relax(from_ase(atoms), cell="flexible", max_force=1e-5, max_stress=1e-8)
    atoms.calc = LennardJones(sigma=3.405, epsilon=0.0104, rc=CUTOFF, smooth=False)
    optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
    assert optimizer.run(fmax=1e-5, steps=2000)
    np.testing.assert_allclose(found.energy, atoms.get_potential_energy(), atol=1e-7)
    np.testing.assert_allclose(volume(found.system), atoms.get_volume(), rtol=1e-5)
    assert found.n_steps < 2 * optimizer.nsteps  # at a thousandth of its stress
    ours, theirs = (
        np.sort(a.get_all_distances(mic=True).ravel()) for a in (to_ase(found.system), atoms)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-3)  # by the stress that ASE leaves


def test_lists_grow_with_the_compression():
    """From a dilute start the plan of neighbors is too small at the minimum."""
    atoms = ase.build.bulk("Ar", "fcc", a=6.2, cubic=True) * (2, 2, 2)
    found = relax(from_ase(atoms), cell="isotropic", max_force=1e-6, max_stress=1e-8, skin=0.3)
    perfect = relax(
        from_ase(ase.build.bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2)),
        cell="isotropic",
        max_force=1e-6,
        max_stress=1e-8,
    )
    np.testing.assert_allclose(found.energy, perfect.energy, rtol=1e-8)


def test_single_precision_is_enough_for_usual_limits():
    atoms = shaken(ase.build.bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2))
    params = {name: value.astype(jnp.float32) for name, value in ARGON.items()}
    system = from_ase(atoms, dtype=jnp.float32)
    found = minimize(lennard_jones, params, system, cutoff=CUTOFF, cell="flexible")
    assert found.system.positions.dtype == found.forces.dtype == jnp.float32
    assert found.max_force <= 1e-3


def test_running_out_of_steps_is_an_error_to_go_on_from():
    atoms = shaken(ase.build.bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2))
    system = from_ase(atoms)
    with pytest.raises(ConvergenceError, match=r"after 5 of `max_steps` 5 .* go on from") as caught:
        relax(system, cell="flexible", max_steps=5)
    assert caught.value.minimum.n_steps == 5
    found = relax(caught.value.minimum.system, cell="flexible")
    assert found.max_force <= 1e-3
    broken = ARGON | {"epsilon": jnp.asarray(jnp.nan)}
    with pytest.raises(ConvergenceError, match="after 1 of"):
        minimize(lennard_jones, broken, system, cutoff=CUTOFF)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_force": 0.0}, "`max_force`"),
        ({"max_stress": float("nan")}, "`max_stress`"),
        ({"max_steps": 0}, "`max_steps`"),
        ({"cell": "cubic"}, "`cell` must be"),
        ({"cell": "flexible"}, r"`pbc` is \[False"),
        ({"pressure": 1.0}, "`pressure` 1.0 has no effect"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        relax(make_system(np.eye(3) * 4.0, 18), **change)
