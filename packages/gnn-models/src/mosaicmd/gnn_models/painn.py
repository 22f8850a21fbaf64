"""PaiNN: an equivariant message-passing network with scalar and vector features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from mosaicmd.gnn_models.cutoffs import polynomial_switch
from mosaicmd.gnn_models.layered import Between, Layered
from mosaicmd.gnn_models.pairs import check_species, species_index
from mosaicmd.gnn_models.radial import silu
from mosaicmd.kernel.config import Config, Length, load_config
from mosaicmd.kernel.graphs import Graph, edge_vectors, gather_senders, sum_edges
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System

Array = jax.Array

_TINY = 1e-8
"""Added to squared norms of vector features, so that their root is smooth at zero."""


class PaiNNConfig(Config):
    """Settings of :func:`painn`; ``cutoff`` in Å.

    ``n_features`` scalars and as many vectors per atom, ``n_layers`` message and update
    blocks, ``n_radial`` Bessel functions.
    """

    species: tuple[int, ...]
    cutoff: Length = Field(gt=0.0)
    n_features: int = Field(default=64, ge=2)
    n_layers: int = Field(default=3, ge=1)
    n_radial: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _check(self) -> PaiNNConfig:
        check_species(self.species)
        return self


def painn(config: PaiNNConfig) -> Potential:
    r"""Polarizable atom interaction network: per-atom energies from scalars and vectors.

    Atoms start with a learned scalar vector per species and without vectors. Then, for
    ``n_layers`` times, messages

    ``ds_i = sum_j (phi_s(s_j) * W_s(r_ij))``,
    ``dv_i = sum_j (v_j * phi_vv(s_j) * W_vv(r_ij) + phi_vs(s_j) * W_vs(r_ij) r_ij / |r_ij|)``

    are added, and updates within each atom,

    ``ds_i = a_ss + a_sv <U v_i, V v_i>``, ``dv_i = a_vv U v_i``, ``a = a(s_i, |V v_i|)``;

    a two-layer network reads the energy from the final scalars. ``r_ij`` points to the
    neighbor. The energy of an atom depends on atoms up to ``n_layers`` cutoffs away.

    ========================  ==================================================
    symbol of the paper       name
    ========================  ==================================================
    ``a_Z``                   ``embedding``
    ``phi``                   ``message.{hidden,out}``, a SiLU between them
    ``W`` (rotation-inv.)     ``message.filter``
    ``U, V``                  ``update.mix``: both, side by side
    ``a``                     ``update.{hidden,out}``, a SiLU between them
    ``F``                     ``n_features``
    ========================  ==================================================

    Three things differ from the paper. The filters end with
    :func:`~mosaicmd.gnn_models.cutoffs.polynomial_switch` over the whole range in place of
    a cosine, so that forces have continuous derivatives; the frequencies of the radial
    basis ``sin(omega_n r / r_c) / r`` are learnable, as in DimeNet; and weights that cannot
    matter, those for the vectors of the first message and the last update, do not exist.

    Energies of untrained parameters are of the order of 1 eV: fit label minus
    ``fit_reference_energies``, and for labels of another size use
    :func:`~mosaicmd.gnn_models.scaled`.

    Parameters: a dictionary with ``embedding``, ``frequencies``, ``layers`` (a tuple) and
    ``readout``; weights are Glorot uniform, biases zero.

    References:
        Schütt, Unke & Gastegger, Proc. Mach. Learn. Res. 139, 9377 (2021), Eqs. 7-10.
        Gasteiger, Groß & Günnemann, ICLR (2020): the radial basis.
    """
    return painn_layers(config).potential("painn", config.model_dump(mode="json"))


def painn_layers(config: PaiNNConfig) -> Layered:
    """What :func:`painn` is made of; the scalar features of atoms may be changed."""
    F, cutoff = config.n_features, config.cutoff
    last = config.n_layers - 1

    def init(key: Array) -> Params:
        keys = iter(jax.random.split(key, 5 * config.n_layers + 3))
        layers = []
        for layer in range(config.n_layers):
            n_message = 2 if layer == 0 else 3
            n_update = 2 if layer == last else 3
            message = {
                "hidden": _dense(next(keys), F, F),
                "out": _dense(next(keys), F, n_message * F),
                "filter": _dense(next(keys), config.n_radial, n_message * F),
            }
            mix, hidden, out = jax.random.split(next(keys), 3)
            update = {
                "mix": _dense(mix, F, F, copies=2)["weight"],
                "hidden": _dense(hidden, 2 * F, F),
                "out": _dense(out, F, n_update * F),
            }
            layers.append({"message": message, "update": update})
        return {
            "embedding": jax.random.normal(next(keys), (len(config.species), F)),
            "frequencies": jnp.pi * jnp.arange(1.0, config.n_radial + 1.0),
            "layers": tuple(layers),
            "readout": {
                "hidden": _dense(next(keys), F, F // 2),
                "out": _dense(next(keys), F // 2, 1),
            },
        }

    def energy(
        params: Params,
        system: System,
        graph: Graph,
        between: Between | None = None,
        carry: Any = None,
    ) -> tuple[Array, Any]:
        vectors = edge_vectors(system, graph)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, vectors.dtype), params)
        distances = jnp.sqrt(jnp.sum(vectors**2, axis=1, keepdims=True))
        directions = vectors / distances
        envelope = polynomial_switch(distances, 0.0, cutoff)
        waves = jnp.sin(params["frequencies"][None] / cutoff * distances)
        radial = waves / distances * envelope  # the envelope multiplies the bias as well

        s = params["embedding"][species_index(config.species, system)]
        v = None  # [n_atoms, 3, F]; no vectors yet
        for k, layer in enumerate(params["layers"]):
            weights = layer["message"]["filter"]
            filters = radial @ weights["weight"] + envelope * weights["bias"][None]
            ds, dv = _message(layer["message"], s, v, filters, directions, graph)
            s, v = s + ds, dv if v is None else v + dv
            ds, dv = _update(layer["update"], s, v)
            s, v = s + ds, v if k == last else v + dv
            if between is not None and k < last:
                change, carry = between(k, s, carry)
                s = s if change is None else s + change
        values = _perceptron(params["readout"], s)[:, 0]
        return jnp.where(system.mask, values, 0.0), carry

    return Layered(init, energy, config.n_layers, F, F, cutoff, config.species)


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`painn` from the configuration in a model file."""
    return painn(load_config(PaiNNConfig, config))


def _message(
    params: Params, s: Array, v: Array | None, filters: Array, directions: Array, graph: Graph
) -> tuple[Array, Array]:
    """What neighbors add to scalars ``[n_atoms, F]`` and vectors ``[n_atoms, 3, F]``.

    The blocks of ``phi`` and of the filters are scalars, directions and, if there are
    vectors to pass on, vectors.
    """
    n_atoms, F = s.shape
    phi = _perceptron(params, s)
    if v is None:
        to_s, to_v = jnp.split(gather_senders(phi, graph) * filters, 2, axis=1)
        vectors = to_v[:, None] * directions[:, :, None]
    else:
        # one gather for all that a sender knows
        known = jnp.concatenate([phi, v.reshape(n_atoms, 3 * F)], axis=1)
        at_sender = gather_senders(known, graph)
        product = at_sender[:, : 3 * F] * filters
        to_s, to_v, through = jnp.split(product, 3, axis=1)
        passed = at_sender[:, 3 * F :].reshape(-1, 3, F)
        vectors = to_v[:, None] * directions[:, :, None] + through[:, None] * passed
    together = jnp.concatenate([to_s, vectors.reshape(-1, 3 * F)], axis=1)
    total = sum_edges(together, graph, n_atoms)
    return total[:, :F], total[:, F:].reshape(n_atoms, 3, F)


def _update(params: Params, s: Array, v: Array) -> tuple[Array, Array | float]:
    """What scalars and vectors of one atom do to each other; no vectors in the last layer."""
    n_atoms, F = s.shape
    u, w = jnp.split((v.reshape(-1, F) @ params["mix"]).reshape(n_atoms, 3, 2 * F), 2, axis=2)
    norm = jnp.sqrt(jnp.sum(w**2, axis=1) + _TINY)
    a = _perceptron(params, jnp.concatenate([s, norm], axis=1))
    product = jnp.sum(u * w, axis=1)
    ds = a[:, :F] + a[:, F : 2 * F] * product
    return ds, a[:, None, 2 * F :] * u if a.shape[1] == 3 * F else 0.0


def _perceptron(params: Params, x: Array) -> Array:
    """Two dense layers, ``hidden`` and ``out``, with a SiLU between them."""
    hidden, out = params["hidden"], params["out"]
    x = silu(x @ hidden["weight"] + hidden["bias"][None])
    return x @ out["weight"] + out["bias"][None]


def _dense(key: Array, n_in: int, n_out: int, *, copies: int = 1) -> dict[str, Array]:
    """Glorot-uniform weights, ``[n_in, copies * n_out]``, and a bias of zero."""
    limit = np.sqrt(6.0 / (n_in + n_out))
    shape = (n_in, copies * n_out)
    weight = jax.random.uniform(key, shape, minval=-limit, maxval=limit)
    return {"weight": weight, "bias": jnp.zeros(copies * n_out)}
