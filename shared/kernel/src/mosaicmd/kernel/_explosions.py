"""When a run has exploded, and the error that says where."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.integrators import MDState
from mosaicmd.kernel.trajectory import Trajectory
from mosaicmd.kernel.units import KELVIN

Array = jax.Array

LOWEST_LIMIT_KELVIN = 1.0e4
"""Below this temperature nothing counts as an explosion unless the user says so."""

_TIMES_HOTTER = 20.0


class SimulationError(RuntimeError):
    """A run that cannot go on.

    Attributes:
        step: the first bad step, counted as ``RunState.step``.
        atom: index of the atom to look at.
        replica: its replica, ``None`` without replicas.
        temperature_kelvin: of all atoms at that step; may be NaN.
        checkpoint: path of the last good checkpoint, if the run has a directory.
        trajectory: the frames before the bad step, ``None`` if there are none.
    """

    def __init__(
        self,
        message: str,
        *,
        step: int,
        atom: int,
        replica: int | None,
        temperature_kelvin: float,
        checkpoint: str | None,
        trajectory: Trajectory | None,
    ) -> None:
        super().__init__(message)
        self.step, self.atom, self.replica = step, atom, replica
        self.temperature_kelvin = temperature_kelvin
        self.checkpoint, self.trajectory = checkpoint, trajectory


def bath_temperature(md: MDState) -> np.ndarray:
    """``kT`` of the thermostat, NaN without one, ``[]`` or ``[replicas]``; eV."""
    return np.asarray(getattr(md.thermostat, "kT", np.full(md.energy.shape, math.nan)), float)


def bath_pressure(md: MDState) -> np.ndarray | None:
    """External pressure, ``None`` without a barostat, ``[]`` or ``[replicas]``; eV/Å³."""
    return None if md.stress is None else np.asarray(md.barostat.pressure, float)


def temperature_limit(md: MDState, max_temperature_kelvin: float | None) -> Array:
    """The ``kT`` above which a run has exploded, ``[]`` or ``[replicas]``, eV.

    By default 20 times the higher of the temperatures of thermostat and atoms, and no less
    than :data:`LOWEST_LIMIT_KELVIN`.
    """
    if max_temperature_kelvin is not None:
        highest = np.asarray(max_temperature_kelvin * KELVIN)
    else:
        momenta, masses = np.asarray(md.momenta, float), np.asarray(md.system.masses, float)
        own = np.mean(momenta**2 / masses[..., None], axis=(-2, -1))
        highest = _TIMES_HOTTER * np.fmax(bath_temperature(md), own)
        highest = np.fmax(highest, LOWEST_LIMIT_KELVIN * KELVIN)
    return jnp.asarray(np.broadcast_to(highest, md.energy.shape), md.momenta.dtype)


def explosion(
    md: MDState,
    step: int,
    timestep: float,
    *,
    checkpoint: tuple[str, int] | None,
    trajectory: Trajectory | None,
) -> SimulationError:
    """The error for a state that is no longer healthy.

    Args:
        md: as it was after the first bad step.
        step: number of that step.
        timestep: t.
        checkpoint: path and step of the last good one.
        trajectory: the frames before.
    """
    system = md.system
    mask, masses = np.asarray(system.mask), np.asarray(system.masses, float)
    momenta, forces = np.asarray(md.momenta, float), np.asarray(md.forces, float)
    with np.errstate(over="ignore", invalid="ignore"):
        kinetic = np.where(mask, 0.5 * np.sum(momenta**2, axis=-1) / masses, 0.0)
        broken = ~np.isfinite(kinetic + np.sum(forces**2, axis=-1)) & mask
        worst = np.unravel_index(np.argmax(np.where(broken, np.inf, kinetic)), kinetic.shape)
        own = worst[:-1]
        temperature = float(2.0 * kinetic[own].sum() / (3.0 * mask[own].sum() * KELVIN))
    atom, replica = int(worst[-1]), int(own[0]) if own else None
    where = f"atom {atom}" + ("" if replica is None else f" of replica {replica}")
    what = (
        f"force or momentum of {where} is not finite (temperature {temperature:.4g} K)"
        if broken.any()
        else f"the temperature reached {temperature:.4g} K and {where} is the fastest"
    )
    last = (
        ""
        if checkpoint is None
        else (f" The last good checkpoint is {checkpoint[0]} of step {checkpoint[1]}.")
    )
    return SimulationError(
        f"the run broke at step {step}: {what}. Try a smaller "
        f"timestep (now {timestep:.4g} t), look for overlapping atoms in the start structure, "
        "and ask whether the potential knows such configurations; if it is meant to be this "
        f"hot, raise `max_temperature_kelvin`.{last}",
        step=step,
        atom=atom,
        replica=replica,
        temperature_kelvin=temperature,
        checkpoint=None if checkpoint is None else checkpoint[0],
        trajectory=trajectory,
    )
