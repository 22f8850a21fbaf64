"""`mosaicmd md`: molecular dynamics with a model, its trajectory and averages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from mosaicmd.kernel import units
from mosaicmd.kernel.barostats import npt
from mosaicmd.kernel.config import Config, Length, Pressure, Rate, Temperature, Time
from mosaicmd.kernel.data import DataError, read_structures
from mosaicmd.kernel.integrators import Integrator, csvr, langevin, nose_hoover, nve
from mosaicmd.kernel.model_files import load_model
from mosaicmd.kernel.precision import FloatType, weights_type
from mosaicmd.kernel.report import Metric, write_results
from mosaicmd.kernel.run_folders import claim
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.statistics import standard_error
from mosaicmd.kernel.stored_runs import export_run
from mosaicmd.kernel.systems import System, from_ase
from mosaicmd.kernel.trajectory import Trajectory

_FEWEST_FRAMES = 10  # that averages are taken of, after the first fifth


class DynamicsConfig(Config):
    """Settings of `mosaicmd md`.

    ``temperature_kelvin`` is that of the thermostat, with ``nve`` that of the first momenta.
    ``nvt`` has the thermostats ``csvr``, ``nose_hoover`` and ``langevin``, ``npt`` the first
    two. ``cell`` says how a barostat moves the cell: ``isotropic`` suits liquids, ``flexible``
    crystals.
    """

    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    temperature_kelvin: Temperature = Field(gt=0.0)
    pressure_bar: Pressure = 1.0
    timestep_fs: Time = Field(default=1.0, gt=0.0)
    steps: int | None = Field(default=None, ge=1)
    duration_ps: Time | None = Field(default=None, gt=0.0)
    every: int = Field(default=100, ge=1)  # steps between frames
    thermostat: Literal["csvr", "nose_hoover", "langevin"] = "csvr"
    relaxation_time_fs: Time = Field(default=100.0, gt=0.0)
    barostat_time_fs: Time = Field(default=1000.0, gt=0.0)
    friction_per_ps: Rate = Field(default=1.0, gt=0.0)  # of langevin
    cell: Literal["isotropic", "orthorhombic", "flexible"] = "isotropic"
    repeat: tuple[int, int, int] = (1, 1, 1)
    frame: int = -1  # of the structure file
    skin: Length = Field(default=1.0, ge=0.0)  # Å
    seed: int = 0
    dtype: FloatType | None = None  # that of the weights, or float32 if there are none
    trajectory: str = "trajectory.traj"  # .traj, .h5, .xtc or .dcd

    @model_validator(mode="after")
    def _check(self) -> DynamicsConfig:
        if (self.steps is None) == (self.duration_ps is None):
            raise ValueError("give either `steps` or `duration_ps`")
        if self.ensemble == "npt" and self.thermostat == "langevin":
            raise ValueError("`thermostat` langevin has no barostat here; take csvr or nose_hoover")
        if Path(self.trajectory).suffix not in (".traj", ".h5", ".xtc", ".dcd"):
            raise ValueError("`trajectory` must end in .traj, .h5, .xtc or .dcd")
        if min(self.repeat) < 1:
            raise ValueError("`repeat` must be three positive integers")
        return self

    @property
    def n_steps(self) -> int:
        """Steps of the run, rounded up to whole frames."""
        steps = self.steps or math.ceil(
            1000.0 * (self.duration_ps or 0.0) / self.timestep_fs - 1e-6
        )
        return math.ceil(steps / self.every) * self.every


def run_dynamics(
    model: Path, structure: Path, config: DynamicsConfig, out: Path, *, progress: bool | None = None
) -> dict[str, Metric]:
    """Simulate, and write everything into a folder; the same call again resumes.

    The folder gets ``config.yaml``, ``data.json`` (checksums), ``run/`` (frames and the
    complete state, see :meth:`mosaicmd.kernel.simulation.Simulation.run`), the trajectory
    and ``results.json``.

    Returns:
        Averages over the last four fifths of the run, and the drift of what is conserved.

    Raises:
        ConfigError: for a folder that holds another run.
        ModelFileError: for a directory that is no model.
        DataError: for a structure that cannot be read.
        SimulationError: if the run explodes.
    """
    potential, params = load_model(model, dtype=config.dtype)
    system = _structure(structure, config, config.dtype or weights_type(params) or "float32")
    potential.check(system)
    claim(out, config, {"structure": structure, "model": model / "model.json"})
    simulation = Simulation(
        potential.energy,
        integrator(config),
        cutoff=potential.cutoff,
        skin=config.skin,
        every=config.every,
        store_momenta=Path(config.trajectory).suffix in (".traj", ".h5"),
    )
    kT = config.temperature_kelvin * units.KELVIN
    state = simulation.start(jax.random.key(config.seed), params, system, kT=kT)
    _, trajectory = simulation.run(
        params, state, config.n_steps, directory=out / "run", progress=progress
    )
    export_run(out / "run", out / config.trajectory)
    metrics = averages(trajectory)
    write_results(out / "results.json", metrics, n_frames=trajectory.n_frames)
    return metrics


def integrator(config: DynamicsConfig) -> Integrator:
    """The integrator that the settings ask for."""
    timestep = config.timestep_fs * units.FEMTOSECOND
    kT = config.temperature_kelvin * units.KELVIN
    relaxation_time = config.relaxation_time_fs * units.FEMTOSECOND
    if config.ensemble == "nve":
        return nve(timestep)
    if config.ensemble == "npt":
        assert config.thermostat != "langevin"
        return npt(
            timestep,
            kT,
            config.pressure_bar * units.BAR,
            relaxation_time=relaxation_time,
            barostat_time=config.barostat_time_fs * units.FEMTOSECOND,
            cell=config.cell,
            thermostat=config.thermostat,
        )
    if config.thermostat == "langevin":
        return langevin(timestep, config.friction_per_ps / units.PICOSECOND, kT)
    make = csvr if config.thermostat == "csvr" else nose_hoover
    return make(timestep, kT, relaxation_time)


def averages(trajectory: Trajectory) -> dict[str, Metric]:
    """Means with standard errors over the last four fifths, and the drift, by name."""
    n_atoms = int(np.sum(np.asarray(trajectory.systems.mask)))
    names = {
        "temperature_kelvin": ("temperature_kelvin", "K", 1.0),
        "energy": ("potential_energy", "eV/atom", 1.0 / n_atoms),
        "volume": ("volume", "Å³/atom", 1.0 / n_atoms),
    }
    metrics = {}
    start = trajectory.n_frames // 5
    for name, (title, unit, scale) in names.items():
        if name not in trajectory.quantities:
            continue
        series = np.asarray(trajectory.quantities[name], float)[start:] * scale
        error = None
        if len(series) >= _FEWEST_FRAMES:
            error = float(standard_error(jnp.asarray(series))[0])
        metrics[title] = Metric(float(series.mean()), unit, error)
    conserved = trajectory.quantities.get("conserved_energy")
    if conserved is not None and trajectory.n_frames > 2:
        time = np.asarray(trajectory.time, float) / units.PICOSECOND
        slope = np.polyfit(time, np.asarray(conserved, float) / n_atoms, 1)[0]
        metrics["drift_of_conserved_energy"] = Metric(1e3 * float(slope), "meV/atom/ps")
    return metrics


def _structure(path: Path, config: DynamicsConfig, dtype: FloatType) -> System:
    structures: list[Any] = read_structures(path)
    try:
        atoms = structures[config.frame]
    except IndexError:
        raise DataError(f"{path} has {len(structures)} frames, none is {config.frame}") from None
    return from_ase(atoms.repeat(config.repeat), dtype=dtype)
