"""Integrators of molecular dynamics, each split where the forces are evaluated.

One step is ``drift``, a force evaluation, ``kick``; the split leaves room for the
neighbor update between new positions and new forces. Everything stays in the dtype of
the system. ``drift`` and ``kick`` are free of control flow, so replicas are a ``vmap``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.momenta import (
    degrees_of_freedom,
    inverse_masses,
    kinetic_energy,
    maxwell_boltzmann,
)
from mosaicmd.kernel.systems import System

__all__ = [
    "Integrator",
    "LangevinBath",
    "MDState",
    "NoseHooverChain",
    "langevin",
    "maxwell_boltzmann",
    "nose_hoover",
    "nve",
]

Array = jax.Array


class MDState(NamedTuple):
    """Everything that a step changes; with a leading axis on every leaf, replicas."""

    system: System  # positions unwrapped
    momenta: Array  # [n_atoms, 3], u Å/t
    forces: Array  # [n_atoms, 3], eV/Å, at the positions
    energy: Array  # [], eV, at the positions
    key: Array  # typed PRNG key
    thermostat: Any = ()


class Integrator(NamedTuple):
    """One way to propagate a system.

    ``drift`` leads up to the new positions, ``kick`` takes the energy and forces there and
    completes the step. ``init(key, system, momenta, kT)`` takes ``kT=None`` for the
    integrator's own; energy and forces of its state are zero until the first evaluation.
    ``conserved`` is the quantity that exact dynamics would keep, eV, and ``None`` where
    there is none. ``fixed_degrees`` counts degrees of freedom without kinetic energy.
    ``settings`` tells this integrator from another one.
    """

    init: Callable[[Array, System, Array, float | Array | None], MDState]
    drift: Callable[[MDState], MDState]
    kick: Callable[[MDState, Array, Array], MDState]
    conserved: Callable[[MDState], Array] | None
    timestep: float  # t
    kT: float | None  # eV; None: the energy is kept, not the temperature
    fixed_degrees: int
    settings: Mapping[str, Any]


class LangevinBath(NamedTuple):
    """State of the bath of :func:`langevin`."""

    kT: Array  # [], eV


class NoseHooverChain(NamedTuple):
    """State of the thermostat of :func:`nose_hoover`."""

    kT: Array  # [], eV
    degrees: Array  # [], degrees of freedom of the atoms
    positions: Array  # [chain_length], dimensionless
    momenta: Array  # [chain_length], eV t


def nve(timestep: float, *, fixed_degrees: int = 3) -> Integrator:
    """Constant energy by velocity Verlet.

    Args:
        timestep: t.
        fixed_degrees: 3 where the total momentum is conserved (every potential of the
            atoms' mutual distances); 0 in an external field.

    Raises:
        ValueError: for a time step that is not positive.

    References:
        Swope, Andersen, Berens & Wilson, J. Chem. Phys. 76, 637 (1982).
    """
    _require_positive(timestep=timestep)

    def init(key: Array, system: System, momenta: Array, kT: float | Array | None) -> MDState:
        del kT
        return _at_rest(key, system, momenta, ())

    def drift(state: MDState) -> MDState:
        momenta = state.momenta + 0.5 * timestep * state.forces
        return _moved(state, momenta, timestep)

    def kick(state: MDState, energy: Array, forces: Array) -> MDState:
        return _kicked(state, energy, forces, timestep)

    def conserved(state: MDState) -> Array:
        return state.energy + kinetic_energy(state.system, state.momenta)

    settings = {"integrator": "nve", "timestep": timestep, "fixed_degrees": fixed_degrees}
    return Integrator(init, drift, kick, conserved, timestep, None, fixed_degrees, settings)


def langevin(timestep: float, friction: float, kT: float) -> Integrator:
    """Constant temperature by Langevin dynamics in the BAOAB splitting.

    Configurational averages carry an error of order ``timestep^2`` with a small
    prefactor (none for a harmonic well); the kinetic temperature reads low at large time
    steps although positions are sampled well.

    Args:
        timestep: t.
        friction: collision rate, 1/t.
        kT: temperature, eV.

    Raises:
        ValueError: for a setting that is not positive.

    References:
        Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34 (2013).
    """
    _require_positive(timestep=timestep, friction=friction, kT=kT)
    decay = math.exp(-friction * timestep)
    spread = -math.expm1(-2.0 * friction * timestep)

    def init(key: Array, system: System, momenta: Array, kT_bath: float | Array | None) -> MDState:
        bath = LangevinBath(_temperature(kT_bath, kT, system))
        return _at_rest(key, system, momenta, bath)

    def drift(state: MDState) -> MDState:
        key, sub = jax.random.split(state.key)
        system, dtype = state.system, state.momenta.dtype
        momenta = state.momenta + 0.5 * timestep * state.forces  # B
        state = _moved(state, momenta, 0.5 * timestep)  # A
        masses = jnp.where(system.mask, system.masses, 0.0)[:, None]
        noise = jax.random.normal(sub, state.momenta.shape, dtype)
        width = jnp.sqrt(spread * state.thermostat.kT * masses)
        momenta = decay * state.momenta + width * noise  # O
        return _moved(state, momenta, 0.5 * timestep)._replace(key=key)  # A

    def kick(state: MDState, energy: Array, forces: Array) -> MDState:
        return _kicked(state, energy, forces, timestep)  # B

    settings = {"integrator": "langevin", "timestep": timestep, "friction": friction, "kT": kT}
    return Integrator(init, drift, kick, None, timestep, kT, 0, settings)


def nose_hoover(
    timestep: float,
    kT: float,
    relaxation_time: float,
    chain_length: int = 3,
    *,
    fixed_degrees: int = 3,
) -> Integrator:
    """Constant temperature by a Nosé–Hoover chain, deterministic and time reversible.

    The chain is integrated by one pass of the third-order Suzuki–Yoshida scheme before
    and after velocity Verlet. Its masses are ``degrees kT tau^2`` for the first link and
    ``kT tau^2`` for the others.

    Args:
        timestep: t.
        kT: temperature, eV.
        relaxation_time: ``tau``, t; a good choice is 50 to 200 time steps.
        chain_length: number of links.
        fixed_degrees: as in :func:`nve`.

    Raises:
        ValueError: for a setting that is not positive, or a relaxation time below ten
            time steps, at which the chain is not integrated well.

    References:
        Martyna, Klein & Tuckerman, J. Chem. Phys. 97, 2635 (1992); Martyna, Tuckerman,
        Tobias & Klein, Mol. Phys. 87, 1117 (1996).
    """
    _require_positive(
        timestep=timestep, kT=kT, relaxation_time=relaxation_time, chain_length=chain_length
    )
    if relaxation_time < 10.0 * timestep:
        raise ValueError(
            f"`relaxation_time` {relaxation_time!r} must be at least ten time steps "
            f"({10.0 * timestep!r}); 50 to 200 are a good choice"
        )

    def init(key: Array, system: System, momenta: Array, kT_bath: float | Array | None) -> MDState:
        zeros = jnp.zeros(chain_length, system.positions.dtype)
        chain = NoseHooverChain(
            kT=_temperature(kT_bath, kT, system),
            degrees=degrees_of_freedom(system, fixed_degrees),
            positions=zeros,
            momenta=zeros,
        )
        return _at_rest(key, system, momenta, chain)

    def thermalised(state: MDState) -> MDState:
        doubled = 2.0 * kinetic_energy(state.system, state.momenta)
        scale, chain = _half_chain(state.thermostat, doubled, timestep, relaxation_time)
        return state._replace(momenta=scale * state.momenta, thermostat=chain)

    def drift(state: MDState) -> MDState:
        state = thermalised(state)
        momenta = state.momenta + 0.5 * timestep * state.forces
        return _moved(state, momenta, timestep)

    def kick(state: MDState, energy: Array, forces: Array) -> MDState:
        return thermalised(_kicked(state, energy, forces, timestep))

    def conserved(state: MDState) -> Array:
        chain = state.thermostat
        masses = jnp.stack(_chain_masses(chain, relaxation_time))
        weights = jnp.ones_like(chain.positions).at[0].set(chain.degrees)
        bath = jnp.sum(0.5 * chain.momenta**2 / masses + weights * chain.kT * chain.positions)
        return state.energy + kinetic_energy(state.system, state.momenta) + bath

    settings = {
        "integrator": "nose_hoover",
        "timestep": timestep,
        "kT": kT,
        "relaxation_time": relaxation_time,
        "chain_length": chain_length,
        "fixed_degrees": fixed_degrees,
    }
    return Integrator(init, drift, kick, conserved, timestep, kT, fixed_degrees, settings)


_CUBE_ROOT = 2.0 ** (1.0 / 3.0)
_SUZUKI_YOSHIDA = (
    1.0 / (2.0 - _CUBE_ROOT),
    -_CUBE_ROOT / (2.0 - _CUBE_ROOT),
    1.0 / (2.0 - _CUBE_ROOT),
)


def _half_chain(
    chain: NoseHooverChain, doubled: Array, timestep: float, relaxation_time: float
) -> tuple[Array, NoseHooverChain]:
    """Half a time step of the chain: the factor for the momenta, and the new chain.

    Written out over scalars, so that XLA makes few kernels of it. ``jax_md.simulate`` has
    the same chain, and its single passes agree with these to its rounding (tested). It is
    not used because it rounds fractions of the time step to single precision, and because
    the weights it has for three passes (0.829, -0.658, 0.829) do not make a scheme of
    fourth order: the sum of their cubes is not zero.
    """
    kT, last = chain.kT, chain.positions.shape[0] - 1
    masses = _chain_masses(chain, relaxation_time)
    x = [chain.positions[i] for i in range(last + 1)]
    p = [chain.momenta[i] for i in range(last + 1)]
    scale = jnp.ones((), kT.dtype)

    def force(i: int) -> Array:
        if i == 0:
            return scale**2 * doubled - chain.degrees * kT
        return p[i - 1] ** 2 / masses[i - 1] - kT

    def push(i: int, step: float) -> None:
        drag = 1.0 if i == last else jnp.exp(-0.25 * step * p[i + 1] / masses[i + 1])
        p[i] = drag * (drag * p[i] + 0.5 * step * force(i))

    for weight in _SUZUKI_YOSHIDA:
        step = 0.5 * weight * timestep
        for i in reversed(range(last + 1)):
            push(i, step)
        scale = scale * jnp.exp(-step * p[0] / masses[0])
        x = [x[i] + step * p[i] / masses[i] for i in range(last + 1)]
        for i in range(last + 1):
            push(i, step)
    return scale, chain._replace(positions=jnp.stack(x), momenta=jnp.stack(p))


def _chain_masses(chain: NoseHooverChain, relaxation_time: float) -> list[Array]:
    mass = chain.kT * relaxation_time**2
    return [mass * chain.degrees] + [mass] * (chain.positions.shape[0] - 1)


def _at_rest(key: Array, system: System, momenta: Array, thermostat: Any) -> MDState:
    """The state before its first force evaluation."""
    energy = jnp.zeros((), jax.dtypes.canonicalize_dtype(float))
    momenta = jnp.where(system.mask[:, None], momenta, 0.0).astype(system.positions.dtype)
    return MDState(system, momenta, jnp.zeros_like(momenta), energy, key, thermostat)


def _moved(state: MDState, momenta: Array, time: float) -> MDState:
    """The state after free flight with new momenta."""
    system = state.system
    positions = system.positions + time * inverse_masses(system) * momenta
    return state._replace(system=system._replace(positions=positions), momenta=momenta)


def _kicked(state: MDState, energy: Array, forces: Array, timestep: float) -> MDState:
    """The state with new forces, its momenta half a time step further."""
    forces = jnp.where(state.system.mask[:, None], forces, 0.0)
    momenta = state.momenta + 0.5 * timestep * forces
    return state._replace(energy=energy, forces=forces, momenta=momenta)


def _temperature(kT: float | Array | None, default: float, system: System) -> Array:
    return jnp.asarray(default if kT is None else kT, system.positions.dtype)


def _require_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not (value > 0.0 and math.isfinite(value)):
            raise ValueError(f"`{name}` must be positive and finite, got {value!r}")
