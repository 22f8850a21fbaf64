"""What the three models know: errors of labels, elasticity, expansion, phonons, other phases."""

from pathlib import Path
from typing import Any, NamedTuple

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import titanium

from mosaicmd.kernel import units
from mosaicmd.kernel.barostats import npt
from mosaicmd.kernel.elasticity import relaxed_structure
from mosaicmd.kernel.force_matching import evaluate_labels
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.phonons import force_constants, frequencies_thz
from mosaicmd.kernel.potentials import Potential, total_energy
from mosaicmd.kernel.simulation import Simulation, SimulationError
from mosaicmd.kernel.statistics import standard_error
from mosaicmd.kernel.systems import System, from_ase
from mosaicmd.kernel.trajectory import Trajectory

PATH = (("Γ", (0.0, 0.0, 0.0)), ("M", (0.5, 0.0, 0.0)), ("K", (1 / 3, 1 / 3, 0.0)))
PATH += (("Γ", (0.0, 0.0, 0.0)), ("A", (0.0, 0.0, 0.5)))
NEAREST_ANGSTROM = 2.9


class Series(NamedTuple):
    """Averages at several temperatures, with standard errors."""

    kelvin: np.ndarray  # [n]
    values: np.ndarray  # [n, ...]
    errors: np.ndarray


class Findings(NamedTuple):
    """Of one model."""

    labels: dict[str, dict[str, float]]  # errors by phase, of the structures held out
    elasticity: Series  # C11, C12, C13, C33, C44, pressure, GPa
    expansion: Series  # a and c, Å
    branches: tuple[np.ndarray, np.ndarray]  # along the path, THz
    bcc_mev: float | None  # energy per atom above hcp, both at rest without stress; or no rest
    stable_ps: float  # how long the run at the highest temperature went
    wandering: float  # root mean square displacement there, in distances of neighbors


class Dynamics(NamedTuple):
    """Simulations, compiled once for all models and temperatures."""

    plain: Simulation
    observed: Simulation  # with what elastic constants need
    free: Simulation  # at constant pressure


def dynamics(settings: titanium.TitaniumConfig, potential: Potential) -> Dynamics:
    """Their thermostats are set by the temperatures of the runs."""
    run, room = settings.validation, titanium.measured()[298.0]
    observable = titanium.elasticity(potential, room, titanium.crystal(settings, room))
    barostat = npt(
        run.expansion.timestep_fs * units.FEMTOSECOND,
        room.kT,
        0.0,
        relaxation_time=0.2 * units.PICOSECOND,
        barostat_time=1.0 * units.PICOSECOND,
        cell="flexible",
    )
    return Dynamics(
        plain=titanium.simulation(
            run.stability, potential, titanium.thermostat(run.stability, room.kT)
        ),
        observed=titanium.simulation(
            run, potential, titanium.thermostat(run, room.kT), observe=observable
        ),
        free=titanium.simulation(run.expansion, potential, barostat),
    )


def validate(
    settings: titanium.TitaniumConfig,
    potential: Potential,
    moving: Dynamics,
    params: Any,
    directory: Path,
) -> Findings:
    """Everything about one model; runs are kept in ``directory`` and resumed."""
    held_out = titanium.held_out(settings, potential)
    constants, cells = settings.validation, settings.validation.expansion
    return Findings(
        {p: evaluate_labels(potential.energy, params, b) for p, b in held_out.items()},
        series(
            constants.temperatures_kelvin,
            elasticity(settings, potential, moving.observed, params, directory),
        ),
        series(cells.temperatures_kelvin, expansion(settings, moving.free, params, directory)),
        phonons(potential, params),
        bcc_above_hcp(potential, params),
        *stability(settings, moving.plain, params, directory),
    )


def series(kelvin: tuple[float, ...], found: list[tuple[np.ndarray, np.ndarray]]) -> Series:
    values, errors = (np.array(part) for part in zip(*found, strict=True))
    return Series(np.array(kelvin), values, errors)


def simulated(
    dynamics: Simulation,
    run: titanium.RunConfig,
    params: Any,
    start: System,
    kT: float,
    key: jax.Array,
    directory: Path,
) -> Trajectory:
    """Frames after equilibration."""
    state = dynamics.start(key, params, start, kT=kT)
    total = run.every * (run.n_equilibration + run.n_frames)
    _, trajectory = dynamics.run(params, state, total, directory=directory)
    return trajectory.skip(run.n_equilibration)


def key_of(settings: titanium.TitaniumConfig, purpose: str, index: int) -> jax.Array:
    """Of one run: with the same noise, harmonic crystals of all temperatures move alike."""
    number = 1 + ("elasticity", "expansion", "stability").index(purpose)
    return jax.random.fold_in(jax.random.key(settings.seed + number), index)


def elasticity(
    settings: titanium.TitaniumConfig,
    potential: Potential,
    dynamics: Simulation,
    params: Any,
    directory: Path,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """C11, C12, C13, C33, C44 and pressure in the measured cells, with errors, GPa.

    Not numbers at temperatures where the simulation broke.
    """
    run, measured, found = settings.validation, titanium.measured(), []
    for index, kelvin in enumerate(run.temperatures_kelvin):
        start, kT = titanium.crystal(settings, measured[kelvin]), measured[kelvin].kT
        folder, key = directory / f"{kelvin:g}K", key_of(settings, "elasticity", index)
        try:
            frames = simulated(dynamics, run, params, start, kT, key, folder)
        except SimulationError:
            found.append((np.full(6, np.nan), np.full(6, np.nan)))
            continue
        observable = titanium.elasticity(potential, measured[kelvin], start)
        value, info = observable(frames)
        found.append((np.asarray(value), np.asarray(info.error)))
    return found


def expansion(
    settings: titanium.TitaniumConfig, dynamics: Simulation, params: Any, directory: Path
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lattice parameters a and c without pressure, with errors, Å; not numbers if it broke."""
    run, measured, found = settings.validation.expansion, titanium.measured(), []
    for index, kelvin in enumerate(run.temperatures_kelvin):
        start, kT = titanium.crystal(settings, measured[kelvin]), measured[kelvin].kT
        folder, key = directory / f"npt-{kelvin:g}K", key_of(settings, "expansion", index)
        try:
            frames = simulated(dynamics, run, params, start, kT, key, folder)
        except SimulationError:
            found.append((np.full(2, np.nan), np.full(2, np.nan)))
            continue
        cells = np.asarray(frames.systems.cell, float)
        edges = np.linalg.norm(cells, axis=-1) / np.array(settings.repeats)
        lengths = np.stack([edges[:, :2].mean(axis=1), edges[:, 2]], axis=1)
        error, _ = standard_error(jnp.asarray(lengths))
        found.append((lengths.mean(axis=0), np.asarray(error)))
    return found


def stability(
    settings: titanium.TitaniumConfig, dynamics: Simulation, params: Any, directory: Path
) -> tuple[float, float]:
    """How long a run at the highest temperature lasts, ps, and how far its atoms wander."""
    run, measured = settings.validation.stability, titanium.measured()
    point = measured[max(measured)]
    start, folder = titanium.crystal(settings, point), directory / "stability"
    key = key_of(settings, "stability", 0)
    try:
        frames = simulated(dynamics, run, params, start, point.kT, key, folder)
    except SimulationError as error:
        return 1e-3 * error.step * run.timestep_fs, float("inf")
    moved = np.asarray(frames.systems.positions, float) - np.asarray(start.positions, float)
    moved -= moved.mean(axis=1, keepdims=True)
    distance = float(np.sqrt(np.mean(np.sum(moved[len(moved) // 2 :] ** 2, axis=-1))))
    duration = 1e-3 * run.every * (run.n_equilibration + run.n_frames) * run.timestep_fs
    return duration, distance / NEAREST_ANGSTROM


def phonons(potential: Potential, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Harmonic frequencies (THz) in the cell measured at 298 K, and where along `PATH`."""
    point = titanium.measured()[298.0]
    primitive = from_ase(ase.build.bulk("Ti", "hcp", a=point.a, c=point.c))
    shape = {"repeats": (5, 5, 3), "cutoff": potential.cutoff}
    constants = force_constants(potential.energy, params, primitive, **shape)
    corners = np.array([corner for _, corner in PATH])
    along = np.linspace(0.0, len(PATH) - 1.0, 20 * (len(PATH) - 1) + 1)
    at = np.stack([np.interp(along, np.arange(len(PATH)), axis) for axis in corners.T], axis=1)
    return along, np.asarray(frequencies_thz(constants, at))


def bcc_above_hcp(potential: Potential, params: Any) -> float | None:
    """Energy per atom of bcc above hcp, meV, each in its own cell without stress.

    ``None`` for a model in which one of them has no such cell nearby.
    """
    point = titanium.measured()[4.0]
    energies = []
    for atoms in (
        ase.build.bulk("Ti", "hcp", a=point.a, c=point.c),
        ase.build.bulk("Ti", "bcc", a=3.26, cubic=True),
    ):
        start = from_ase(atoms)
        try:
            system = relaxed_structure(
                potential.energy, params, start, cutoff=potential.cutoff, max_steps=20
            )
        except RuntimeError:
            return None
        graph = host_graph(system, potential.cutoff)
        energies.append(float(total_energy(potential.energy, params, system, graph)) / len(atoms))
    return 1e3 * (energies[1] - energies[0])
