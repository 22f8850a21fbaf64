"""One timing of molecular dynamics in a process of its own, on one core.

``python _dynamics_engines.py ENGINE CASE N_ATOMS`` prints a line of JSON: the potential energy of
the start (eV), steps per second, peak memory (MiB) and, for MosaicMD, the number of programs.
All engines get the same positions, velocities, list skin and time step; JAX engines run in
float32, LAMMPS in float64.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

SECONDS = 4.0  # of every timing, about
UNIT = 40  # steps that a timing is a multiple of
BOLTZMANN = 8.617330e-5  # eV/K
FEMTOSECOND = 0.0982269475  # Å sqrt(u/eV)


class Case(NamedTuple):
    """What is simulated; `basis` and `vectors` of the crystal in units of its constant."""

    constant: float  # Å
    basis: list
    vectors: list
    mass: float  # u
    kelvin: float
    timestep_fs: float
    skin: float  # Å
    cutoff: float  # Å
    pair: dict


FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
DIAMOND = FCC + [[x + 0.25 for x in site] for site in FCC]
CUBE = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
PRIMITIVE = [[1, 0, 0], [0.5, 0.75**0.5, 0], [0.5, 0.75**0.5 / 3, (2 / 3) ** 0.5]]
ARGON = {"epsilon": 0.0104, "sigma": 3.4}
SILICON = {"epsilon": 2.16826, "sigma": 2.0951, "strength": 21.0}
MW_WATER = {"epsilon": 0.268381, "sigma": 2.3925, "strength": 23.15}
CASES = {
    "Lennard-Jones": Case(5.713, FCC, CUBE, 39.948, 180.0, 5.0, 1.0, 8.5, ARGON),
    "Lennard-Jones, triclinic": Case(
        4.0397, [[0, 0, 0]], PRIMITIVE, 39.948, 180.0, 5.0, 1.0, 8.5, ARGON
    ),
    "Stillinger-Weber": Case(5.431, DIAMOND, CUBE, 28.085, 1000.0, 1.0, 0.5, 3.77118, SILICON),
    "mW water": Case(6.20, DIAMOND, CUBE, 18.015, 600.0, 5.0, 0.8, 4.3065, MW_WATER),
}
"""Argon at a reduced density of 0.843, silicon at 1000 K, and mW water (Molinero & Moore, J. Phys.
Chem. B 113, 4008 (2009)) as cubic ice at the density of the liquid; half of the kinetic energy goes
into the crystal."""


def start(case, n_atoms):
    """Positions (Å), momenta (u Å/t) and cell rows (Å) of the size next to ``n_atoms``."""
    n = round((n_atoms / len(case.basis)) ** (1.0 / 3.0))
    cells = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    vectors = case.constant * np.array(case.vectors)
    positions = ((cells + np.array(case.basis)).reshape(-1, 3)) @ vectors
    rng = np.random.default_rng(1)
    positions = positions + rng.normal(scale=0.02, size=positions.shape)
    momenta = rng.normal(size=positions.shape) * np.sqrt(case.mass * BOLTZMANN * case.kelvin)
    return positions, momenta - momenta.mean(axis=0), n * vectors


def timed(run, wait):
    """Steps per second of ``run(n_steps)``; the first call compiles."""
    wait(run(UNIT))
    began = time.perf_counter()
    wait(run(UNIT))
    n_steps = UNIT * max(1, round(SECONDS / (time.perf_counter() - began)))
    began = time.perf_counter()
    wait(run(n_steps))
    return n_steps / (time.perf_counter() - began)


def mosaicmd(case, n_atoms):
    import jax
    import jax.numpy as jnp

    from mosaicmd.gnn_models import LennardJonesConfig, lennard_jones, stillinger_weber
    from mosaicmd.kernel.integrators import nve
    from mosaicmd.kernel.simulation import Simulation
    from mosaicmd.kernel.systems import make_system

    positions, momenta, cell = start(case, n_atoms)
    system = make_system(positions, 1, cell=cell, masses=case.mass, dtype=jnp.float32)
    if "strength" in case.pair:
        potential = stillinger_weber(**case.pair)
    else:
        potential = lennard_jones(
            LennardJonesConfig(**case.pair, cutoff=case.cutoff, truncation="plain")
        )
    params = potential.init(jax.random.key(0))
    simulation = Simulation(
        potential.energy,
        nve(case.timestep_fs * FEMTOSECOND),
        cutoff=potential.cutoff,
        skin=case.skin,
        every=UNIT,
        chunk_frames=4,
    )
    state = simulation.start(jax.random.key(0), params, system, momenta=jnp.asarray(momenta))
    energy = float(state.md.energy)

    def run(n_steps):
        nonlocal state
        state, _ = simulation.run(params, state, n_steps, progress=False)
        return state.md.energy

    programs, run_chunk = -1, cast(Any, simulation._run_chunk)
    while (compiled := run_chunk._cache_size()) != programs:  # a list may have grown
        programs, rate = compiled, timed(run, jax.block_until_ready)
    return {"energy": energy, "rate": rate, "programs": programs}


def jax_md(case, n_atoms, kind):
    import jax
    import jax.numpy as jnp
    from jax_md import energy, partition, simulate, space

    positions, momenta, cell = start(case, n_atoms)
    box, fractional = np.diag(cell), not np.allclose(cell, np.diag(np.diag(cell)))
    if fractional:
        positions, box = positions @ np.linalg.inv(cell), cell.T
        displacement, shift = space.periodic_general(jnp.float32(box))
    else:
        box = jnp.float32(box[0])
        displacement, shift = space.periodic(box)
    options = {
        "dr_threshold": case.skin,
        "fractional_coordinates": fractional,
        "format": getattr(partition.NeighborListFormat, kind),
    }
    if "strength" in case.pair:
        neighbors, function = energy.stillinger_weber_neighbor_list(
            displacement,
            box,
            sigma=case.pair["sigma"],
            lam=case.pair["strength"],
            epsilon=case.pair["epsilon"],
            cutoff=case.cutoff,
            **options,
        )
    else:
        neighbors, function = energy.lennard_jones_neighbor_list(
            displacement,
            box,
            **case.pair,
            r_onset=0.99999 * case.cutoff / case.pair["sigma"],
            r_cutoff=case.cutoff / case.pair["sigma"],
            **options,
        )
    init, step = cast(Any, simulate.nve)(function, shift, case.timestep_fs * FEMTOSECOND)
    function = cast(Any, function)
    listed = neighbors.allocate(jnp.float32(positions))
    state = init(
        jax.random.key(0), jnp.float32(positions), 0.0, mass=jnp.float32(case.mass),
        momenta=jnp.float32(momenta), neighbor=listed,
    )  # fmt: skip
    value = float(function(state.position, neighbor=listed))

    @jax.jit
    def run_steps(state, listed, n_steps):
        def one(_, carry):
            state, listed = carry
            state = step(state, neighbor=listed)
            return state, listed.update(state.position)

        return jax.lax.fori_loop(0, n_steps, one, (state, listed))

    def run(n_steps):
        nonlocal state, listed
        state, listed = run_steps(state, listed, n_steps)
        return state.position

    rate = timed(run, jax.block_until_ready)
    if bool(listed.did_buffer_overflow):
        raise RuntimeError("JAX-MD's neighbor list overflowed")
    return {"energy": value, "rate": rate}


def lammps(case, n_atoms):
    positions, momenta, cell = start(case, n_atoms)
    velocities = momenta / case.mass * FEMTOSECOND * 1.0e3  # Å/ps
    with tempfile.TemporaryDirectory() as folder:
        lines = ["start", "", f"{len(positions)} atoms", "1 atom types", ""]
        for i, axis in enumerate("xyz"):
            lines.append(f"0.0 {cell[i, i]:.10f} {axis}lo {axis}hi")
        lines.append(f"{cell[1, 0]:.10f} {cell[2, 0]:.10f} {cell[2, 1]:.10f} xy xz yz")
        lines += ["", "Masses", "", f"1 {case.mass}", "", "Atoms # atomic", ""]
        lines += [f"{i + 1} 1 {x} {y} {z}" for i, (x, y, z) in enumerate(positions)]
        lines += ["", "Velocities", ""]
        lines += [f"{i + 1} {x} {y} {z}" for i, (x, y, z) in enumerate(velocities)]
        Path(folder, "start.data").write_text("\n".join(lines) + "\n")
        if "strength" in case.pair:
            p = case.pair
            Path(folder, "x.sw").write_text(
                f"X X X {p['epsilon']} {p['sigma']} 1.8 {p['strength']} 1.2 -0.3333333333 "
                "7.049556277 0.6022245584 4.0 0.0 0.0\n"
            )
            style = "pair_style sw\npair_coeff * * x.sw X"
        else:
            style = f"pair_style lj/cut {case.cutoff}\npair_coeff 1 1 {case.pair['epsilon']} 3.4"

        def run(n_steps):
            Path(folder, "in.lammps").write_text(
                "units metal\natom_style atomic\nread_data start.data\n"
                f"{style}\nneighbor {case.skin} bin\n"
                "neigh_modify every 1 delay 0 check yes\n"
                f"timestep {case.timestep_fs / 1000}\nfix 1 all nve\nthermo 1000000\n"
                f"thermo_modify format float %.10g\nrun {UNIT}\nrun {n_steps}\n"
            )
            executable = shutil.which("lmp", path=str(Path(sys.executable).parent))
            library = Path(sys.executable).parents[1] / "lib"
            found = subprocess.run(
                [str(executable), "-in", "in.lammps", "-sf", "opt"],
                cwd=folder,
                env=os.environ | {"LD_LIBRARY_PATH": str(library), "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            )
            return found.stdout

        seconds = float(re.findall(r"Loop time of (\S+)", run(UNIT))[-1])
        n_steps = UNIT * max(1, round(SECONDS / seconds))
        text = run(n_steps)
    rate = n_steps / float(re.findall(r"Loop time of (\S+)", text)[-1])
    first = re.search(r"Step\s+Temp\s+E_pair.*\n\s*0\s+\S+\s+(\S+)", text)
    assert first is not None, text
    return {"energy": float(first[1]), "rate": rate}


def main():
    engine, name, n_atoms = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    chosen = CASES[name]
    match engine.split():
        case ["MosaicMD"]:
            result = mosaicmd(chosen, n_atoms)
        case ["JAX-MD", kind]:
            result = jax_md(chosen, n_atoms, kind)
        case _:
            result = lammps(chosen, n_atoms)
    who = resource.RUSAGE_CHILDREN if engine == "LAMMPS" else resource.RUSAGE_SELF
    result["memory_mib"] = resource.getrusage(who).ru_maxrss / 1024
    result["n_atoms"] = len(start(chosen, n_atoms)[0])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
