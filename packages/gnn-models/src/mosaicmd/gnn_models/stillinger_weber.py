"""Stillinger–Weber terms: the pair term and a learnable three-body term in O(n_neighbors)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from pydantic import Field

from mosaicmd.kernel.config import Config, Energy, Length, load_config
from mosaicmd.kernel.graphs import Graph, edge_components, sum_edges
from mosaicmd.kernel.potentials import Potential, sum_potentials
from mosaicmd.kernel.systems import System

Array = jax.Array


class ThreeBodyConfig(Config):
    """Settings and initial parameters of :func:`three_body`.

    ``strength`` is ``lambda epsilon`` (eV); ``cutoff`` is ``a sigma`` and
    ``decay_length`` is ``gamma sigma`` (Å). The decay length is a parameter only with
    ``learn_decay``: it is strongly correlated with the strength.
    """

    cutoff: Length = Field(gt=0.0)
    decay_length: Length = Field(gt=0.0)
    strength: Energy = Field(gt=0.0)
    cos_angle: float = Field(default=-1.0 / 3.0, ge=-1.0, le=1.0)
    learn_decay: bool = False
    species: tuple[int, ...] | None = None


class StillingerWeberPairConfig(Config):
    """Settings of :func:`stillinger_weber_pair`; ``epsilon`` in eV, ``sigma`` in Å."""

    epsilon: Energy = Field(gt=0.0)
    sigma: Length = Field(gt=0.0)
    a: float = Field(default=1.80, gt=0.0)
    A: float = 7.049556277
    B: float = 0.6022245584
    p: float = 4.0
    q: float = 0.0
    species: tuple[int, ...] | None = None


def three_body(config: ThreeBodyConfig) -> Potential:
    r"""Three-body term of Stillinger and Weber with learnable strength, angle and decay.

    ``E_i = lambda sum_{j<k} (cos theta_jik - c0)^2 f(r_ij) f(r_ik)`` with
    ``f(r) = exp(gamma / (r - r_c))`` below the cutoff ``r_c``. The double sum over
    neighbors is a polynomial in moments of the unit vectors ``u``,

    ``E_i = lambda / 2 (T:T - 2 c0 V.V + c0^2 S^2 - (1 - c0)^2 Q)``,
    ``S = sum f``, ``V = sum f u``, ``T = sum f u u``, ``Q = sum f^2``,

    so the cost is linear in the number of neighbors. All derivatives vanish at ``r_c``.

    Parameters: ``{"log_strength": [] (of eV), "cos_angle": []}``, with ``learn_decay`` also
    ``"decay": [] (Å)``. The logarithm keeps the strength positive, and that of the energy
    is linear in it and in the decay length, so that strongly correlated steps stay exact.

    References:
        Stillinger & Weber, Phys. Rev. B 31, 5262 (1985), Eq. 2.5.
        Molinero & Moore, J. Phys. Chem. B 113, 4008 (2009): the same form as water.
    """

    def init(key: Array) -> dict[str, Array]:
        del key
        params = {
            "log_strength": jnp.log(jnp.asarray(config.strength)),
            "cos_angle": jnp.asarray(config.cos_angle),
        }
        if config.learn_decay:
            params["decay"] = jnp.asarray(config.decay_length)
        return params

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        x, y, z = edge_components(system, graph)
        squared = x * x + y * y + z * z
        inverse = jax.lax.rsqrt(squared)
        distances = squared * inverse
        decay = params["decay"] if config.learn_decay else config.decay_length
        decay = jnp.asarray(decay, distances.dtype)
        f = _decay_to_cutoff(distances, decay, config.cutoff)
        x, y, z = x * inverse, y * inverse, z * inverse
        fx, fy, fz = f * x, f * y, f * z

        def total(values: Array) -> Array:
            return sum_edges(values, graph, system.n_atoms)

        s, q = total(f), total(f * f)
        v_squared = total(fx) ** 2 + total(fy) ** 2 + total(fz) ** 2
        diagonal = total(fx * x) ** 2 + total(fy * y) ** 2 + total(fz * z) ** 2
        mixed = total(fx * y) ** 2 + total(fy * z) ** 2 + total(fz * x) ** 2
        c0 = params["cos_angle"].astype(distances.dtype)
        strength = jnp.exp(params["log_strength"]).astype(distances.dtype)
        pairs = diagonal + 2.0 * mixed - 2.0 * c0 * v_squared + c0**2 * s**2
        return 0.5 * strength * (pairs - (1.0 - c0) ** 2 * q)

    return Potential(
        architecture="three_body",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=config.cutoff,
        species=config.species,
    )


def stillinger_weber_pair(config: StillingerWeberPairConfig) -> Potential:
    """Pair term of Stillinger and Weber.

    ``u(r) = epsilon A (B (sigma/r)^p - (sigma/r)^q) exp(1 / (r/sigma - a))`` below
    ``a sigma``, with learnable ``epsilon`` (eV) and ``sigma`` (Å). The cutoff stays at its
    initial value while ``sigma`` is trained, so neighbor lists remain complete.

    References:
        Stillinger & Weber, Phys. Rev. B 31, 5262 (1985), Eq. 2.3.
    """
    cutoff = config.a * config.sigma

    def init(key: Array) -> dict[str, Array]:
        del key
        return {"epsilon": jnp.asarray(config.epsilon), "sigma": jnp.asarray(config.sigma)}

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        x, y, z = edge_components(system, graph)
        distances = jnp.sqrt(x * x + y * y + z * z)
        epsilon, sigma = (params[k].astype(distances.dtype) for k in ("epsilon", "sigma"))
        envelope = _decay_to_cutoff(distances, sigma, cutoff)
        ratio = sigma / distances
        shape = config.B * ratio**config.p - ratio**config.q
        values = 0.5 * epsilon * config.A * shape * envelope
        return sum_edges(values, graph, system.n_atoms)

    return Potential(
        architecture="stillinger_weber_pair",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=cutoff,
        species=config.species,
    )


def stillinger_weber(
    *,
    epsilon: float,
    sigma: float,
    strength: float = 21.0,
    gamma: float = 1.20,
    a: float = 1.80,
    cos_angle: float = -1.0 / 3.0,
    species: tuple[int, ...] | None = None,
) -> Potential:
    """The complete potential, ``sum_potentials(pair, three_body)``, in the paper's parameters.

    Silicon: ``epsilon`` 2.16826 eV, ``sigma`` 2.0951 Å, ``strength`` (lambda) 21.
    Water (mW): 6.189 kcal/mol, 2.3925 Å, 23.15.
    """
    pair = StillingerWeberPairConfig(epsilon=epsilon, sigma=sigma, a=a, species=species)
    angles = ThreeBodyConfig(
        cutoff=a * sigma,
        decay_length=gamma * sigma,
        strength=strength * epsilon,
        cos_angle=cos_angle,
        species=species,
    )
    return sum_potentials(stillinger_weber_pair(pair), three_body(angles))


def build_three_body(config: Mapping[str, Any]) -> Potential:
    """:func:`three_body` from the configuration in a model file."""
    return three_body(load_config(ThreeBodyConfig, config))


def build_pair(config: Mapping[str, Any]) -> Potential:
    """:func:`stillinger_weber_pair` from the configuration in a model file."""
    return stillinger_weber_pair(load_config(StillingerWeberPairConfig, config))


def _decay_to_cutoff(distances: Array, length: Array, cutoff: float | Array) -> Array:
    """``exp(length / (r - cutoff))`` below the cutoff, zero with all derivatives above."""
    inside = distances < cutoff
    gap = jnp.where(inside, distances - cutoff, -length)
    return jnp.where(inside, jnp.exp(length / gap), 0.0)
