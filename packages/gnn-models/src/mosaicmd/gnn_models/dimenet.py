"""DimeNet++: messages along directed edges, which see the angles between them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from mosaicmd.gnn_models.pairs import check_species, species_index
from mosaicmd.gnn_models.radial import power_envelope, silu
from mosaicmd.gnn_models.spherical_bessel import (
    spherical_bessel_functions,
    spherical_harmonics,
)
from mosaicmd.gnn_models.triplets import (
    EdgeRows,
    edge_rows,
    on_cpu,
    pair_filters,
    pair_polynomials,
    sum_filtered_pairs,
    sum_pairs,
    sum_triplets,
    to_rows,
)
from mosaicmd.kernel.config import Config, Length, load_config
from mosaicmd.kernel.graphs import (
    Graph,
    edge_components,
    edges_within,
    rows_within,
    sum_edges,
)
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System

Array = jax.Array


_FEW_NEIGHBORS = 10
_FEW_ON_GPU = 32
"""Longest rows whose pairs are cheaper than moments."""


class DimeNetConfig(Config):
    """Settings of :func:`dimenet`; ``cutoff`` in Å. The defaults are those of DimeNet++.

    ``n_features`` numbers per message, updated in ``n_blocks`` blocks, each with
    ``n_residual_before`` and ``n_residual_after`` residual layers before and after its skip
    connection. ``n_radial`` Bessel functions for distances, and as many for each of
    ``n_spherical`` Legendre polynomials of angles; all end with an envelope of power
    ``envelope_power``. Messages on their way between edges have ``triplet_features`` numbers
    (half of ``n_features`` by default), the embedded basis ``basis_features``, species
    ``species_features`` (``n_features`` by default), and atoms ``output_features`` (twice
    ``n_features`` by default) in ``n_output_layers`` layers. With ``zero_energy`` the initial
    parameters give no energy, for networks that are learned on top of something else.

    ``most_neighbors`` is a promise that no atom has more than that many within the cutoff. It
    changes no result, only how it is found: edges beyond the cutoff, which lists for simulations
    have many of, are then left out, and the triplets of up to ten neighbors, as in crystals with
    few bonds, are summed pair by pair. ``most_edges_per_atom`` is the same of the mean over all
    atoms, for liquids, whose atoms have few neighbors more often than many: messages then are as
    many as there are edges, and not as many as the longest rows hold. Energies are NaN where a
    promise is broken.
    """

    species: tuple[int, ...]
    cutoff: Length = Field(gt=0.0)
    n_features: int = Field(default=128, ge=2)
    n_blocks: int = Field(default=4, ge=0)
    n_radial: int = Field(default=6, ge=1)
    n_spherical: int = Field(default=7, ge=1, le=16)
    envelope_power: int = Field(default=6, ge=1)
    n_residual_before: int = Field(default=1, ge=0)
    n_residual_after: int = Field(default=2, ge=0)
    n_output_layers: int = Field(default=3, ge=0)
    species_features: int | None = Field(default=None, ge=1)
    triplet_features: int | None = Field(default=None, ge=1)
    basis_features: int = Field(default=8, ge=1)
    output_features: int | None = Field(default=None, ge=1)
    most_neighbors: int | None = Field(default=None, ge=1, le=64)
    most_edges_per_atom: float | None = Field(default=None, gt=0.0)
    zero_energy: bool = False

    @model_validator(mode="after")
    def _check(self) -> DimeNetConfig:
        check_species(self.species)
        return self


def dimenet(config: DimeNetConfig) -> Potential:
    r"""Directional message passing: per-atom energies from messages and the angles between them.

    A message from atom ``j`` to its neighbor ``i`` starts as

    ``m_ji = s([h_i, h_j, e(d_ji)] W + b)``

    with learned vectors ``h`` per species and ``s`` the SiLU. In each block it hears from all
    other messages that arrive at ``j``,

    ``a_ji = sum_(k != i) s(W_down (s(W_kj m_kj) * W_e e(d_kj))) * W_a a(d_kj, angle_kji)``,
    ``m_ji <- m_ji + s(W_skip R(s(W_ji m_ji) + s(W_up a_ji)))``,

    with residual layers ``R``, and more of them after the sum. Before the first block and after
    each, atoms add up what arrives, ``t_i = sum_j (W_o e(d_ji) * m_ji)``, and a perceptron turns
    ``t_i`` into energy. The basis ``e`` is of ``sqrt(2 / c) sin(w_n d / c) / d``, with learnable
    ``w_n``, and ``a`` of ``j_l(z_ln d / c) Y_l0(angle)``, both times an envelope that takes two
    derivatives to zero at the cutoff ``c``. The energy of an atom depends on atoms up to
    ``n_blocks + 1`` cutoffs away.

    ==========================  ==================================================
    symbol of the papers        name
    ==========================  ==================================================
    ``h_Z``                     ``embedding.species``
    ``w_n`` (frequencies)       ``frequencies``
    ``e_RBF``, ``a_SBF``        ``radial``, ``spherical``: of ``basis_features`` first
    ``W_kj, W_ji``              ``blocks.source``, ``blocks.target``
    ``W_down, W_up``            ``blocks.down``, ``blocks.up``
    ``N_RBF, N_SHBF, N_SRBF``   ``n_radial``, ``n_spherical``, ``n_radial``
    ==========================  ==================================================

    Sums over ``k`` go through moments of spherical harmonics
    (:mod:`mosaicmd.gnn_models.triplets`): cost and memory are linear in the number of neighbors,
    there is no list of triplets, and angles are never computed, so straight and folded triplets
    are like all others. Where atoms are known to have few neighbors, by ``most_neighbors`` or by
    the length of rows if the graph is in rows, sums go over pairs of them, with the same result.
    As in the papers, and unlike in their published code, the envelope of ``a`` has no additional
    factor ``c / d``, and angles are between bonds; the functions ``j_l`` are normalised on the
    unit ball, as in that code.

    Energies of untrained parameters are of the order of 1 eV: fit label minus
    ``fit_reference_energies``, and for labels of another size use
    :func:`~mosaicmd.gnn_models.scaled`.

    Parameters: a dictionary with ``embedding``, ``frequencies``, ``blocks`` and
    ``outputs`` (tuples); weights are orthogonal with the variance of Glorot, biases zero.

    References:
        Gasteiger, Groß & Günnemann, ICLR (2020): messages, bases and envelope, Eqs. 4-10.
        Gasteiger, Giri, Margraf & Günnemann, arXiv:2011.14115 (2020): DimeNet++.
        Thaler & Zavadlav, Nat. Commun. 12, 6884 (2021): coarse-grained water, with
        ``n_features=32`` and ``species_features=16``.
    """
    F, cutoff = config.n_features, config.cutoff
    n_triplet = config.triplet_features or max(1, F // 2)
    n_output = config.output_features or 2 * F
    n_species = config.species_features or F
    n_l, n_radial, n_basis = config.n_spherical, config.n_radial, config.basis_features

    def init(key: Array) -> Params:
        keys = (jax.random.fold_in(key, k) for k in itertools.count())

        def residual() -> Params:
            return {"hidden": _dense(next(keys), F, F), "out": _dense(next(keys), F, F)}

        def factors(n_in: int, n_out: int) -> Params:
            return {
                "in": _weight(next(keys), n_in, n_basis),
                "out": _weight(next(keys), n_basis, n_out),
            }

        blocks = tuple(
            {
                "radial": factors(n_radial, F),
                "spherical": factors(n_l * n_radial, n_triplet),
                "source": _dense(next(keys), F, F),
                "target": _dense(next(keys), F, F),
                "down": _weight(next(keys), F, n_triplet),
                "up": _weight(next(keys), n_triplet, F),
                "before": tuple(residual() for _ in range(config.n_residual_before)),
                "skip": _dense(next(keys), F, F),
                "after": tuple(residual() for _ in range(config.n_residual_after)),
            }
            for _ in range(config.n_blocks)
        )
        outputs = tuple(
            {
                "radial": _weight(next(keys), n_radial, F),
                "up": _weight(next(keys), F, n_output),
                "layers": tuple(
                    _dense(next(keys), n_output, n_output) for _ in range(config.n_output_layers)
                ),
                "energy": _weight(next(keys), n_output, 1) * (not config.zero_energy),
            }
            for _ in range(config.n_blocks + 1)
        )
        species = jax.random.uniform(
            next(keys),
            (len(config.species), n_species),
            minval=-math.sqrt(3.0),
            maxval=math.sqrt(3.0),
        )
        return {
            "embedding": {"species": species, **_dense(next(keys), 2 * n_species + n_radial, F)},
            "frequencies": jnp.pi * jnp.arange(1.0, n_radial + 1.0),
            "blocks": blocks,
            "outputs": outputs,
        }

    def energy(params: Params, system: System, graph: Graph) -> Array:
        graph, fits = _shortened(config, system, graph)
        x, y, z = edge_components(system, graph)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), params)
        distances = jnp.sqrt(x * x + y * y + z * z)
        scaled = jnp.minimum(distances / cutoff, 1.0)
        envelope = power_envelope(distances, cutoff, config.envelope_power)
        waves = jnp.sin(params["frequencies"][:, None] * scaled[None])
        radial = (math.sqrt(2.0 / cutoff) * envelope / distances)[
            None
        ] * waves  # [n_radial, n_edges]

        polar = jnp.stack([x / distances, y / distances, z / distances, scaled], axis=-1)
        kind = species_index(config.species, system)
        m = _first_messages(params["embedding"], kind, radial, graph)
        n_atoms = system.n_atoms
        longest = graph.row_length or (config.most_neighbors if fits is not None else None)
        few = _FEW_NEIGHBORS if on_cpu() else _FEW_ON_GPU
        pairs = longest is not None and longest <= few
        length = longest if longest is not None and pairs else _row_length(graph, n_atoms)
        rows = edge_rows(graph, n_atoms, length, one_each=pairs)
        *directions, scaled = jnp.moveaxis(to_rows(polar, rows), -1, 0)
        spherical = _spherical_basis(scaled, rows, config)
        listeners = _listeners(
            config, params["blocks"], spherical, directions, rows, n_atoms, pairs=pairs
        )
        values = _output(params["outputs"][0], m, radial, graph, n_atoms)
        layers = zip(params["blocks"], listeners, params["outputs"][1:], strict=True)
        for block, hear, output in layers:
            m = _interaction(block, m, radial, hear)
            values = values + _output(output, m, radial, graph, n_atoms)
        values = values if fits is None else jnp.where(fits, values, jnp.nan)
        return jnp.where(system.mask, values, 0.0)

    return Potential(
        architecture="dimenet",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=cutoff,
        species=config.species,
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`dimenet` from the configuration in a model file."""
    return dimenet(load_config(DimeNetConfig, config))


def _shortened(config: DimeNetConfig, system: System, graph: Graph) -> tuple[Graph, Array | None]:
    """The graph without edges that promises exclude, and whether these hold, if it changed."""
    most, mean = config.most_neighbors, config.most_edges_per_atom
    length = graph.row_length
    if length is not None and mean is not None and mean < min(length, most or length):
        n_edges = math.ceil(mean * system.n_atoms)
        graph, fits = edges_within(system, graph, config.cutoff, n_edges)
        if most is not None:
            count = jnp.zeros(system.n_atoms, jnp.int32).at[graph.receivers].add(graph.mask)
            fits &= jnp.all(count <= most)
        return graph, fits
    if most is not None and most < (length or _FEW_NEIGHBORS + 1):
        return rows_within(system, graph, config.cutoff, most)
    return graph, None


def _listeners(
    config: DimeNetConfig,
    blocks: tuple[Params, ...],
    spherical: list[Array],
    directions: list[Array],
    rows: EdgeRows,
    n_atoms: int,
    *,
    pairs: bool,
) -> list[Callable[[Array], Array]]:
    """For each block what turns messages into what every edge hears, by pairs or by moments."""
    weights = [block["spherical"]["in"] @ block["spherical"]["out"] for block in blocks]
    if pairs and on_cpu():
        filters = pair_filters(spherical, directions, weights)
        return [functools.partial(sum_filtered_pairs, filters=each, rows=rows) for each in filters]
    if pairs:
        polynomials = pair_polynomials(*directions, n_spherical=config.n_spherical)
        hear = functools.partial(sum_pairs, polynomials=polynomials, rows=rows)
    else:
        harmonics = spherical_harmonics(*directions, n_spherical=config.n_spherical)
        hear = functools.partial(sum_triplets, harmonics=harmonics, rows=rows, n_atoms=n_atoms)
    return [functools.partial(hear, filters=_filters(spherical, each)) for each in weights]


def _filters(spherical: list[Array], weight: Array) -> list[Array]:
    """Combinations of the radial functions of each ``l``, ``[n_rows * length, n_triplet]``."""
    weights = list(weight.reshape(len(spherical), -1, weight.shape[1]))
    if on_cpu():
        return [f.T @ w for f, w in zip(spherical, weights, strict=True)]
    together = jnp.concatenate(spherical).T @ jax.scipy.linalg.block_diag(*weights)
    return jnp.split(together, len(spherical), axis=1)


def _spherical_basis(scaled: Array, rows: EdgeRows, config: DimeNetConfig) -> list[Array]:
    """``sqrt((2 l + 1) / 4 pi) j_ln(d / c)`` under the envelope, by ``l [n, n_rows * length]``."""
    x = scaled.reshape(-1)
    values = spherical_bessel_functions(x, config.n_spherical, config.n_radial)
    degree = 2.0 * np.arange(config.n_spherical) + 1.0
    norm = jnp.asarray(np.sqrt(degree / (4.0 * np.pi)), x.dtype)
    envelope = power_envelope(x, 1.0, config.envelope_power)
    envelope = jnp.where(rows.mask.reshape(-1), envelope, 0.0)
    return list(norm[:, None, None] * values * envelope[None, None])


def _first_messages(params: Params, kind: Array, radial: Array, graph: Graph) -> Array:
    """From the species of both ends and the distance, ``[n_edges, F]``."""
    h, weight = params["species"], params["weight"]
    n = h.shape[1]
    receiver, sender = h @ weight[:n] + params["bias"][None], h @ weight[n : 2 * n]
    ends = receiver[kind[graph.receivers]] + sender[kind[graph.senders]]
    return silu(ends + radial.T @ weight[2 * n :])


def _interaction(params: Params, m: Array, radial: Array, hear: Callable[[Array], Array]) -> Array:
    """One block: messages ``[n_edges, F]`` after they heard from those that arrive behind them."""
    filters = radial.T @ (params["radial"]["in"] @ params["radial"]["out"])
    heard = hear(silu((_layer(params["source"], m) * filters) @ params["down"]))
    new = _layer(params["target"], m) + silu(heard @ params["up"])
    for residual in params["before"]:
        new = _residual(residual, new)
    m = m + _layer(params["skip"], new)
    for residual in params["after"]:
        m = _residual(residual, m)
    return m


def _output(params: Params, m: Array, radial: Array, graph: Graph, n_atoms: int) -> Array:
    """Energies of atoms from the messages that arrive, ``[n_atoms]``."""
    t = sum_edges(m * (radial.T @ params["radial"]), graph, n_atoms) @ params["up"]
    for layer in params["layers"]:
        t = _layer(layer, t)
    return (t @ params["energy"])[:, 0]


def _residual(params: Params, x: Array) -> Array:
    return x + _layer(params["out"], _layer(params["hidden"], x))


def _layer(params: Params, x: Array) -> Array:
    return silu(x @ params["weight"] + params["bias"][None])


def _row_length(graph: Graph, n_atoms: int) -> int:
    """Of rows of edges, for little padding: about the mean number of neighbors, if known."""
    if not isinstance(graph.n_edges, int):
        return 32  # a program that is exported for any number of edges
    return int(np.clip(2 ** round(math.log2(max(graph.n_edges, 1) / max(n_atoms, 1))), 4, 64))


def _dense(key: Array, n_in: int, n_out: int) -> dict[str, Array]:
    return {"weight": _weight(key, n_in, n_out), "bias": jnp.zeros(n_out)}


def _weight(key: Array, n_in: int, n_out: int) -> Array:
    """A random orthogonal matrix, ``[n_in, n_out]``, scaled to the variance of Glorot."""
    weight = jax.nn.initializers.orthogonal()(key, (n_in, n_out))
    return weight * jnp.sqrt(2.0 / ((n_in + n_out) * jnp.mean(weight**2)))
