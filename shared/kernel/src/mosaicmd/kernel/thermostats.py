"""Thermostats that rescale momenta: the Nosé–Hoover chain and stochastic velocity rescaling.

Either is a map of half a time step that multiplies all momenta of its degrees of freedom by
one number. The atoms have one, and a barostat has another for the motion of its cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Thermostat(NamedTuple):
    """A thermostat for half a time step at a time.

    ``init(kT, degrees)`` gives the state of the bath, which has the field ``kT`` (eV);
    ``degrees`` counts the degrees of freedom. ``rescale(key, bath, terms)`` takes what adds up
    to twice their kinetic energy (eV, any shape, as many entries as degrees or more) and
    returns the factor of the momenta, the key for the next time and the new bath.
    ``energy(bath)`` is what the bath contributes to the conserved quantity, eV. ``settings``
    are what it was made with.
    """

    init: Callable[[Array, Array], Any]
    rescale: Callable[[Array, Any, Array], tuple[Array, Array, Any]]
    energy: Callable[[Any], Array]
    settings: Mapping[str, Any]


class NoseHooverChain(NamedTuple):
    """State of :func:`nose_hoover_chain`."""

    kT: Array  # [], eV
    degrees: Array  # [], degrees of freedom with this temperature
    positions: Array  # [chain_length], dimensionless
    momenta: Array  # [chain_length], eV t


class StochasticBath(NamedTuple):
    """State of :func:`stochastic_rescaling`."""

    kT: Array  # [], eV
    degrees: Array  # [], degrees of freedom with this temperature
    heat: Array  # [], eV, that went into the bath


def nose_hoover_chain(timestep: float, relaxation_time: float, chain_length: int = 3) -> Thermostat:
    """A chain of thermostats, deterministic and time reversible.

    Integrated by one pass of the third-order Suzuki–Yoshida scheme. The masses of the chain
    are ``degrees kT tau^2`` for the first link and ``kT tau^2`` for the others.

    Args:
        timestep: t.
        relaxation_time: ``tau``, t; a good choice is 50 to 200 time steps.
        chain_length: number of links.

    Raises:
        ValueError: for a setting that is not positive, or a relaxation time below ten
            time steps, at which the chain is not integrated well.

    References:
        Martyna, Klein & Tuckerman, J. Chem. Phys. 97, 2635 (1992); Martyna, Tuckerman,
        Tobias & Klein, Mol. Phys. 87, 1117 (1996).
    """
    require_positive(timestep=timestep, relaxation_time=relaxation_time, chain_length=chain_length)
    if relaxation_time < 10.0 * timestep:
        raise ValueError(
            f"`relaxation_time` {relaxation_time!r} must be at least ten time steps "
            f"({10.0 * timestep!r}); 50 to 200 are a good choice"
        )

    def init(kT: Array, degrees: Array) -> NoseHooverChain:
        zeros = jnp.zeros(chain_length, kT.dtype)
        return NoseHooverChain(kT, degrees, positions=zeros, momenta=zeros)

    def rescale(
        key: Array, chain: NoseHooverChain, terms: Array
    ) -> tuple[Array, Array, NoseHooverChain]:
        scale, chain = _half_chain(chain, jnp.sum(terms), timestep, relaxation_time)
        return scale, key, chain

    def energy(chain: NoseHooverChain) -> Array:
        masses = jnp.stack(_chain_masses(chain, relaxation_time))
        weights = jnp.ones_like(chain.positions).at[0].set(chain.degrees)
        return jnp.sum(0.5 * chain.momenta**2 / masses + weights * chain.kT * chain.positions)

    return Thermostat(
        init, rescale, energy, {"relaxation_time": relaxation_time, "chain_length": chain_length}
    )


def stochastic_rescaling(timestep: float, relaxation_time: float) -> Thermostat:
    """Canonical sampling by stochastic velocity rescaling (CSVR).

    The kinetic energy relaxes to its canonical distribution within ``tau``, and hardly
    anything else of the dynamics is disturbed. The direction of the momenta in phase space
    is kept, so their norm is drawn as if all were subject to friction and noise; see the
    appendix of the reference. Momenta that are all zero stay so.

    Args:
        timestep: t.
        relaxation_time: ``tau`` of the kinetic energy, t.

    Raises:
        ValueError: for a setting that is not positive.

    References:
        Bussi, Donadio & Parrinello, J. Chem. Phys. 126, 014101 (2007).
    """
    require_positive(timestep=timestep, relaxation_time=relaxation_time)
    kept = math.exp(-0.5 * timestep / relaxation_time)
    renewed = -math.expm1(-0.5 * timestep / relaxation_time)

    def init(kT: Array, degrees: Array) -> StochasticBath:
        return StochasticBath(kT, degrees, heat=jnp.zeros((), jax.dtypes.canonicalize_dtype(float)))

    def rescale(
        key: Array, bath: StochasticBath, terms: Array
    ) -> tuple[Array, Array, StochasticBath]:
        doubled = jnp.sum(terms)
        safe = jnp.where(doubled > 0.0, doubled, 1.0)
        key, for_two, for_others = jax.random.split(key, 3)
        noise = jax.random.normal(for_two, (2,), terms.dtype)
        # the sum of squares of two Gaussians is twice an exponential
        squares = 2.0 * jax.random.exponential(for_others, (terms.size // 2,), terms.dtype)
        pairs, odd = jnp.divmod(bath.degrees - 1.0, 2.0)
        squares = jnp.where(jnp.arange(terms.size // 2) < pairs, squares, 0.0)
        along = math.sqrt(kept) * jnp.sqrt(safe) + jnp.sqrt(renewed * bath.kT) * noise[0]
        across = renewed * bath.kT * (jnp.sum(squares) + odd * noise[1] ** 2)
        size = jnp.sqrt((along**2 + across) / safe)
        scale = jnp.where(doubled > 0.0, jnp.where(along < 0.0, -size, size), 1.0)
        taken = 0.5 * doubled * (1.0 - scale**2)
        return scale, key, bath._replace(heat=bath.heat + taken.astype(bath.heat.dtype))

    return Thermostat(init, rescale, lambda bath: bath.heat, {"relaxation_time": relaxation_time})


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


def require_positive(**settings: float) -> None:
    """Raise a ``ValueError`` that names the first setting that is not positive and finite."""
    for name, value in settings.items():
        if not (value > 0.0 and math.isfinite(value)):
            raise ValueError(f"`{name}` must be positive and finite, got {value!r}")
