"""The ASE calculator against ASE's own potential, dynamics, optimisers and phonons."""

import threading

import ase
import ase.build
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.calculators.socketio import SocketClient, SocketIOCalculator
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.phonons import Phonons
from deploy_potentials import ARGON, CUTOFF, lennard_jones

from mosaicmd.kernel.deploy import ase_calculator
from mosaicmd.kernel.minimize import minimize
from mosaicmd.kernel.model_files import save_model
from mosaicmd.kernel.phonons import force_constants, frequencies_thz
from mosaicmd.kernel.systems import from_ase

KEY = jax.random.key(0)


def calculator(potential=None, **options):
    potential = lennard_jones()[0] if potential is None else potential
    return ase_calculator((potential, potential.init(KEY)), **options)


def argon(repeat=2, a=5.3, rattle=0.1):
    atoms = ase.build.bulk("Ar", "fcc", a=a, cubic=True) * repeat
    atoms.rattle(rattle, seed=1)
    return atoms


def triclinic(repeat=2):
    atoms = argon(repeat)
    strain = np.eye(3) + np.random.default_rng(2).normal(scale=0.05, size=(3, 3))
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return atoms


def slab():
    atoms = argon()
    atoms.center(vacuum=6.0, axis=2)
    atoms.pbc = (True, True, False)
    return atoms


def wire():
    """A cell with one vector only."""
    atoms = ase.Atoms("Ar4", positions=[[0, 0, 0], [3.4, 0.3, 0], [6.9, 0, 0.2], [2, 3.3, 1]])
    atoms.cell = [[10.5, 0.0, 0.0], [0.0] * 3, [0.0] * 3]
    atoms.pbc = (True, False, False)
    return atoms


def cluster():
    atoms = argon(1)
    atoms.pbc, atoms.cell = False, None
    return atoms


@pytest.mark.parametrize("make", [triclinic, slab, wire, cluster, lambda: argon(1, a=5.1)])
def test_everything_equals_the_lennard_jones_of_ase(make):
    """Energies per atom, forces and stress; the last cell is smaller than the cutoff."""
    atoms = make()
    reference = atoms.copy()
    reference.calc = LennardJones(sigma=ARGON["sigma"], epsilon=ARGON["epsilon"], rc=CUTOFF)
    atoms.calc = calculator()
    assert atoms.get_potential_energy() == pytest.approx(
        reference.get_potential_energy(), rel=1e-11
    )
    np.testing.assert_allclose(
        atoms.get_potential_energies(), reference.get_potential_energies(), rtol=1e-10, atol=1e-14
    )
    np.testing.assert_allclose(atoms.get_forces(), reference.get_forces(), rtol=0.0, atol=1e-13)
    if atoms.cell.rank == 3:
        np.testing.assert_allclose(
            atoms.get_stress(), reference.get_stress(), rtol=1e-10, atol=1e-15
        )
    else:
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()


def test_float32_agrees_within_its_rounding():
    atoms = triclinic()
    atoms.calc = calculator(dtype="float32")
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = calculator()
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-5)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=2e-5)


def test_velocity_verlet_conserves_energy_with_one_program_and_few_lists():
    """4 fs, 2 ps at 40 K: a drift of 3e-8 eV per atom and picosecond was measured; one trace."""
    potential, traces = lennard_jones(smooth=True)
    atoms = argon(3)
    atoms.calc = calculator(potential, skin=1.0)
    momenta = np.random.default_rng(3).normal(size=(len(atoms), 3))
    momenta *= np.sqrt(atoms.get_masses() * ase.units.kB * 40.0)[:, None]
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    energies, farthest, last = [], [], None
    dynamics = VelocityVerlet(atoms, timestep=4.0 * ase.units.fs)

    def look():
        energies.append(atoms.get_total_energy() / len(atoms))
        farthest.append(atoms.positions.copy())

    dynamics.attach(look)
    dynamics.run(500)
    time_ps = 0.004 * np.arange(len(energies))
    drift = np.polyfit(time_ps, energies, 1)[0]
    assert abs(drift) < 2e-7
    assert np.ptp(energies) < 2e-6  # eV per atom; the kinetic energy fluctuates by 1e-3
    assert len(traces) == 1
    builds = 0  # as many as the rule asks for
    for positions in farthest:
        if last is None or np.linalg.norm(positions - last, axis=1).max() > 0.499:
            builds, last = builds + 1, positions
    assert abs(atoms.calc.n_list_builds - builds) <= 1
    assert 2 <= builds < 50


def test_a_lists_reach_is_never_exceeded():
    """Every step of a fast run equals a calculation with a fresh list."""
    potential, _ = lennard_jones(smooth=True)
    atoms = argon(2)
    atoms.calc = calculator(potential, skin=0.5)
    rng = np.random.default_rng(4)
    fresh = calculator(potential, skin=0.0)
    for _ in range(20):
        atoms.positions += rng.normal(scale=0.06, size=atoms.positions.shape)
        strain = 1.0 + rng.normal(scale=0.002, size=3)
        atoms.set_cell(atoms.cell.array * strain, scale_atoms=bool(rng.integers(2)))
        np.testing.assert_allclose(
            atoms.get_forces(), fresh.get_forces(atoms), rtol=0.0, atol=1e-11
        )
    assert 2 < atoms.calc.n_list_builds < 20


def test_bfgs_with_cell_filter_reaches_the_minimum_of_minimize():
    potential, traces = lennard_jones(smooth=True)
    atoms = argon(1, rattle=0.03)
    atoms.set_cell(atoms.cell.array @ [[1.02, 0.01, 0.0], [0.0, 0.99, 0.02], [0.0, 0.0, 1.0]], True)
    system = from_ase(atoms)
    atoms.calc = calculator(potential)
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=5e-4, steps=300)
    assert len(traces) <= 3  # grows by what the cell shrinks
    found = minimize(
        potential.energy,
        potential.init(KEY),
        system,
        cutoff=CUTOFF,
        cell="flexible",
        max_force=1e-4,
        max_stress=1e-7,
    )
    assert atoms.get_potential_energy() == pytest.approx(float(found.energy), abs=1e-5)
    volume = abs(np.linalg.det(np.asarray(found.system.cell)))
    assert atoms.get_volume() == pytest.approx(volume, rel=1e-3)
    assert atoms.calc.n_list_builds < 20


def test_phonons_of_ase_are_those_of_the_kernel(tmp_path):
    """Finite differences of 1 mÅ against exact derivatives, along Γ-X, THz."""
    potential, traces = lennard_jones(cutoff=7.0, smooth=True)
    params = potential.init(KEY)
    primitive = ase.build.bulk("Ar", "fcc", a=5.25)
    relaxed = minimize(
        potential.energy, params, from_ase(primitive), cutoff=7.0, cell="isotropic", max_stress=1e-9
    )
    primitive.set_cell(np.asarray(relaxed.system.cell), scale_atoms=True)
    repeats = (5, 5, 5)
    phonons = Phonons(
        primitive, calculator(potential), supercell=repeats, delta=1e-3, name=tmp_path / "phonon"
    )
    phonons.run()
    phonons.read(acoustic=True)
    paths = np.linspace(0.0, 0.5, 6)[1:, None] * np.array([[0.0, 1.0, 1.0]])
    theirs = phonons.band_structure(paths) / (ase.units._hplanck / ase.units._e) / 1e12
    constants = force_constants(potential.energy, params, from_ase(primitive), repeats, cutoff=7.0)
    ours = frequencies_thz(constants, paths)
    np.testing.assert_allclose(np.sort(theirs, axis=1), np.sort(ours, axis=1), atol=2e-4)
    assert len(traces) <= 4  # one is the calculator's


def test_atoms_of_other_number_or_boundaries_do_not_compile_again_when_they_return():
    potential, traces = lennard_jones()
    calc = calculator(potential)
    shapes = [triclinic(), cluster(), slab()]
    for atoms in shapes:
        calc.get_potential_energy(atoms)
    expected = [calculator(potential).get_forces(atoms) for atoms in shapes]
    n_traces = len(traces)
    for _ in range(2):
        for atoms, forces in zip(shapes, expected, strict=True):
            np.testing.assert_allclose(calc.get_forces(atoms), forces, atol=1e-13)
    assert len(traces) == n_traces


def test_a_denser_cell_grows_the_list_once():
    potential, traces = lennard_jones()
    atoms = argon(3, a=6.2)
    atoms.calc = calculator(potential)
    atoms.get_potential_energy()
    for a in (4.9, 6.2, 5.0):
        atoms.set_cell(np.eye(3) * 3 * a, scale_atoms=True)
        found = atoms.get_forces()
        np.testing.assert_allclose(found, calculator(potential).get_forces(atoms), atol=1e-12)
    grown = len(set(traces))
    assert grown == 1  # one number of atoms
    assert len(traces) <= 6


def test_charges_and_the_total_charge_reach_potential_and_results():
    potential, _ = lennard_jones()

    def charges(params, system, graph):
        return jnp.full(system.n_atoms, 1.0) * system.total_charge / system.n_atoms

    atoms = cluster()
    atoms.info["total_charge"] = 2.0
    atoms.calc = calculator(potential, charges=charges)
    np.testing.assert_allclose(atoms.get_charges(), 0.5)
    atoms.info["total_charge"] = -1.0
    np.testing.assert_allclose(atoms.get_charges(), -0.25)
    atoms.calc = calculator(potential)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_charges()


def test_a_unix_socket_gives_the_same_energies_as_the_calculator():
    """ASE drives through the i-PI protocol what a client in another thread computes."""
    potential, traces = lennard_jones()
    atoms, direct = argon(1), calculator(potential)
    name = f"mosaicmd-test-{threading.get_ident()}"
    clients = atoms.copy()
    clients.calc = calculator(potential)
    with SocketIOCalculator(unixsocket=name, timeout=60.0) as server:
        thread = threading.Thread(
            target=lambda: SocketClient(unixsocket=name, timeout=60.0).run(clients, use_stress=True)
        )
        thread.start()
        atoms.calc = server
        for _ in range(4):
            atoms.rattle(0.02, rng=np.random.default_rng(5))
            # the protocol has atomic units with the constants of ASE
            assert atoms.get_potential_energy() == pytest.approx(
                direct.get_potential_energy(atoms), rel=1e-12
            )
            np.testing.assert_allclose(atoms.get_forces(), direct.get_forces(atoms), atol=1e-12)
            np.testing.assert_allclose(atoms.get_stress(), direct.get_stress(atoms), atol=1e-13)
    thread.join(timeout=60.0)
    assert not thread.is_alive()
    assert len(traces) == 1


def test_a_model_directory_is_read(tmp_path):
    from mosaicmd.kernel.reference_energies import atomic_energies

    potential = atomic_energies({18: -1.25})
    save_model(tmp_path / "model", potential, potential.init(KEY))
    atoms = cluster()
    atoms.calc = ase_calculator(tmp_path / "model")
    assert atoms.get_potential_energy() == -5.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda atoms: atoms.set_atomic_numbers([10] * len(atoms)), r"\[10\] of the system are"),
        (lambda atoms: atoms.set_cell([[10, 0, 0], [0, 10, 0], [0, 0, 0]]), "lacks a vector"),
        (lambda atoms: atoms.set_cell([[9, 0, 0], [0, 9, 0], [9, 9, 0]]), "no volume"),
        (lambda atoms: atoms.positions.__setitem__(0, np.nan), "not finite"),
        (lambda atoms: atoms.__delitem__(slice(None)), "empty"),
    ],
)
def test_atoms_that_cannot_be_computed_are_named(change, words):
    atoms = argon(1)
    atoms.calc = calculator()
    atoms.get_potential_energy()
    change(atoms)
    with pytest.raises(ValueError, match=words):
        atoms.get_potential_energy()


def test_settings_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="`skin` must not be negative"):
        calculator(skin=-0.1)
    with pytest.raises(ValueError, match="must be a floating-point type"):
        calculator(dtype="int32")
    with jax.enable_x64(False), pytest.raises(ValueError, match="JAX is in 32-bit mode"):
        calculator(dtype="float64")
