"""Ensembles that can be sampled exactly, so that tests know the answer."""

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.difftre import Sampler
from mosaicmd.kernel.observables import Observable
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

KT = 0.025  # eV


def harmonic_energy(params, system, graph):
    """One spring constant for every atom, tied to the origin."""
    del graph
    return 0.5 * params["k"] * jnp.sum(system.positions**2, axis=-1)


def harmonic_sampler(n_frames, *, n_atoms=1, kT=KT, seed=0):
    """Independent frames of the exact canonical ensemble of :func:`harmonic_energy`."""
    system = make_system(np.zeros((n_atoms, 3)), 1, masses=1.0)

    def sample(params, state):
        key, sub = jax.random.split(jax.random.wrap_key_data(state))
        shape = (n_frames, n_atoms, 3)
        positions = jnp.sqrt(kT / params["k"]) * jax.random.normal(sub, shape)
        systems = system._replace(positions=positions, cell=jnp.zeros((n_frames, 3, 3)))
        return jax.random.key_data(key), Trajectory(systems, {}, StatePoint(kT))

    def init():
        return jax.random.key_data(jax.random.key(seed))

    return Sampler(init, sample, system, StatePoint(kT), n_frames)


def mean_square(name="x2"):
    """<x²> per component, Å²; in a harmonic well kT / k."""
    return Observable(name=name, unit="Å²", per_frame=lambda p, s, g, m: jnp.mean(s.positions**2))


def uniform_sampler(n_frames, *, n_atoms, cell, kT=KT, seed=0):
    """Independent frames of an ideal gas, whatever the parameters."""
    system = make_system(
        np.random.default_rng(1).uniform(0.0, cell, (n_atoms, 3)), 1, cell=cell, masses=1.0
    )

    def sample(params, state):
        key, sub = jax.random.split(jax.random.wrap_key_data(state))
        positions = cell * jax.random.uniform(sub, (n_frames, n_atoms, 3))
        cells = jnp.broadcast_to(system.cell[None], (n_frames, 3, 3))
        systems = system._replace(positions=positions, cell=cells)
        return jax.random.key_data(key), Trajectory(systems, {}, StatePoint(kT))

    def init():
        return jax.random.key_data(jax.random.key(seed))

    return Sampler(init, sample, system, StatePoint(kT), n_frames)
