"""What the models do: long runs of a hundred replicas, and how fast they are."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import alanine
import jax
import numpy as np
import ramachandran

from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.replicas import joined_replicas
from mosaicmd.kernel.simulation import Simulation

EXPLICIT_STEPS = 500


class Findings(NamedTuple):
    """Of one model."""

    sampled: ramachandran.Sampled
    widths: dict[str, np.ndarray]  # of bonds, angles and impropers, over those of the reference


def validate(
    settings: alanine.AlanineConfig,
    reference: alanine.Reference,
    moving: Simulation,
    params: Any,
    directory: Path,
) -> Findings:
    """A run from other frames and another seed than any that was learned from."""
    run = settings.validation
    start = alanine.starts(settings, reference, run.replicas, seed=1)
    state = moving.start(jax.random.key(settings.seed + 1), params, start)
    total = run.every * (run.n_equilibration + run.n_frames)
    _, trajectory = moving.run(params, state, total, directory=directory)
    kept = joined_replicas(trajectory.skip(run.n_equilibration))
    found = alanine.coordinates(np.asarray(kept.systems.positions, float))
    known = alanine.coordinates(reference.positions)
    widths = {
        kind: np.std(centred(found[kind]), axis=0) / np.std(centred(known[kind]), axis=0)
        for kind in ("bonds", "angles", "impropers")
    }
    pieces = found["torsions"].reshape(run.replicas, -1, 2)
    return Findings(ramachandran.Sampled(pieces), widths)


def centred(angles: np.ndarray) -> np.ndarray:
    """Less their circular mean, so that a width is not that of a turn."""
    middle = np.arctan2(np.mean(np.sin(angles), axis=0), np.mean(np.cos(angles), axis=0))
    return np.mod(angles - middle + np.pi, 2.0 * np.pi) - np.pi


def speed(
    settings: alanine.AlanineConfig,
    reference: alanine.Reference,
    potential: Potential,
    params: Any,
) -> float:
    """Nanoseconds of all replicas together per day of the processor."""
    run = settings.validation
    moving = alanine.simulation(run, potential, settings.kT)
    start = alanine.starts(settings, reference, run.replicas, seed=2)
    state = moving.start(jax.random.key(0), params, start)
    state, _ = moving.run(params, state, run.every, progress=False)
    steps = run.every * max(1, 1000 // run.every)
    began = time.process_time()
    moving.run(params, state, steps, progress=False)
    spent = time.process_time() - began
    return 86400.0 * 1e-6 * run.timestep_fs * steps * run.replicas / spent


def explicit_speed() -> float | None:
    """Nanoseconds of explicit water by OpenMM per day of one core; ``None`` without OpenMM."""
    try:
        import openmm  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    import generate

    sim = generate.simulation({"replica": 0, "platform": "CPU", "threads": 1})
    sim.minimizeEnergy(maxIterations=100)
    sim.context.setVelocitiesToTemperature(generate.KELVIN, generate.SEED)
    sim.integrator.step(EXPLICIT_STEPS)
    began = time.process_time()
    sim.integrator.step(EXPLICIT_STEPS)
    spent = time.process_time() - began
    return 86400.0 * 1e-6 * generate.TIMESTEP_FS * EXPLICIT_STEPS / spent
