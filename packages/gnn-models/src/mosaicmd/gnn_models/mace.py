"""MACE: message passing with equivariant many-body messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from mosaicmd.gnn_models.equivariant import (
    Path,
    convolution_paths,
    convolve,
    in_blocks,
    mix_by_species,
    natural,
    spherical_harmonics,
)
from mosaicmd.gnn_models.layered import Between, Layered
from mosaicmd.gnn_models.pairs import check_species, species_index
from mosaicmd.gnn_models.radial import (
    bessel_basis,
    init_perceptron,
    linear,
    normal_weights,
    perceptron,
    power_envelope,
)
from mosaicmd.gnn_models.symmetric_contraction import Contraction, contract, contraction_to
from mosaicmd.kernel.config import Config, Length, load_config
from mosaicmd.kernel.graphs import Graph, edge_components
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System

Array = jax.Array


class MACEConfig(Config):
    """Settings of :func:`mace`; ``cutoff`` in Å. Defaults are those of the published code.

    Each atom has ``n_channels`` features of every degree up to ``hidden_l_max``. Messages
    see directions up to degree ``l_max``, and are products of up to ``correlation`` sums over
    neighbors, so that a layer has terms of up to ``correlation + 1`` bodies.
    ``mean_neighbors`` is the number of edges per atom in typical data, by which sums are
    divided.
    """

    species: tuple[int, ...]
    cutoff: Length = Field(gt=0.0)
    n_channels: int = Field(default=128, ge=1)
    hidden_l_max: int = Field(default=1, ge=0)
    l_max: int = Field(default=3, ge=0)
    correlation: int = Field(default=3, ge=1, le=3)
    n_layers: int = Field(default=2, ge=1)
    n_radial: int = Field(default=8, ge=1)
    envelope_power: int = Field(default=5, ge=1)
    radial_widths: tuple[int, ...] = (64, 64, 64)
    readout_width: int = Field(default=16, ge=1)
    mean_neighbors: float = Field(default=20.0, gt=0.0)

    @model_validator(mode="after")
    def _check(self) -> MACEConfig:
        check_species(self.species)
        if self.hidden_l_max > self.l_max:
            raise ValueError(
                f"`hidden_l_max` {self.hidden_l_max} must not exceed `l_max` {self.l_max}"
            )
        if not self.radial_widths or min(self.radial_widths) < 1:
            raise ValueError(f"`radial_widths` must be positive, got {self.radial_widths}")
        return self


def mace(config: MACEConfig) -> Potential:
    r"""Message passing whose messages are complete symmetric polynomials of neighbor sums.

    Atoms start with a learned scalar vector per species. In every layer neighbors are summed
    once, for each product of features and harmonics with a learned function of the distance,

    ``A_{i,l3m3,c} = sum_p W_p sum_j R_p(r_ij) [Y_l2(ij) (x) (W h_j)_l1]_{l3m3} / n``,

    and then multiplied within the atom, at a cost without edges,

    ``m_{i,LM,c} = sum_nu sum_eta w_{z_i,eta,c} sum_lm C^{LM}_{eta,lm} prod_{k<=nu} A_{i,lm_k,c}``.

    New features are ``h'_i = W m_i + W_{z_i} h_i``. Energies are read from the scalars of every
    layer: linearly, and from those of the last of several layers by a network of one hidden
    layer. The energy of an atom depends on atoms up to ``n_layers`` cutoffs away.

    ======================================  ==================================================
    symbol of the paper                     name
    ======================================  ==================================================
    ``h^(1)``                               ``embedding``
    ``W`` of ``h_j``                        ``layers[t].up``, per degree
    ``R``                                   ``layers[t].radial``, a network without biases
    ``W_p``, all paths                      ``layers[t].mix``, per degree
    ``w`` (its C is a chosen basis)         ``layers[t].product``, per degree
    ``W`` of ``m_i``                        ``layers[t].out``, per degree
    ``W_z`` of ``h_i``                      ``layers[t].skip``, per degree
    ``k``, ``K``                            channels, ``n_channels``
    ``nu``                                  ``correlation``
    ``L_max`` of messages, ``l_max``        ``hidden_l_max``, ``l_max``
    ``lambda``, mean number of neighbors    ``mean_neighbors``
    ======================================  ==================================================

    As in the published code (its model "MACE"), the first layer has in place of ``skip`` one
    linear map of ``A`` per species, also called ``skip``, so that an atom without neighbors
    has exactly no energy; and the last layer makes scalars only. Two things differ from that
    code, neither of them in what can be represented: the basis of symmetric products is free
    of linear dependencies and has another normalisation (see
    :mod:`mosaicmd.gnn_models.symmetric_contraction`), and what a species selects is not
    divided by the root of the number of species.

    Energies of untrained parameters are of the order of 10 meV: fit label minus
    ``fit_reference_energies``, divided by a typical force in eV/Å with
    :func:`~mosaicmd.gnn_models.scaled`.

    Parameters: a dictionary with ``embedding`` and ``layers`` (a tuple); all of them are
    drawn from the standard normal distribution, normalisations being part of the function.

    References:
        Batatia, Kovács, Simm, Ortner & Csányi, Adv. Neural Inf. Process. Syst. 35 (2022).
    """
    return mace_layers(config).potential("mace", config.model_dump(mode="json"))


def mace_layers(config: MACEConfig) -> Layered:
    """What :func:`mace` is made of; energies of a layer are read before its scalars change."""
    C, n_species = config.n_channels, len(config.species)
    steps = _steps(config)

    def init(key: Array) -> Params:
        key, sub = jax.random.split(key)
        layers = []
        for step, sub_key in zip(steps, jax.random.split(key, len(steps)), strict=True):
            layers.append(_init_layer(config, step, sub_key))
        return {
            "embedding": jax.random.normal(sub, (n_species, C)),
            "layers": tuple(layers),
        }

    def energy(
        params: Params,
        system: System,
        graph: Graph,
        between: Between | None = None,
        carry: Any = None,
    ) -> tuple[Array, Any]:
        graph, owner = in_blocks(graph, system.n_atoms)
        vectors = jnp.stack(edge_components(system, graph))
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, vectors.dtype), params)
        distances = jnp.sqrt(jnp.sum(vectors**2, axis=0))
        harmonics = spherical_harmonics(vectors / distances[None], config.l_max)
        radial = bessel_basis(distances, config.cutoff, config.n_radial)
        radial *= power_envelope(distances, config.cutoff, config.envelope_power)[:, None]
        kinds = species_index(config.species, system)

        h = {natural(0): params["embedding"][kinds][None]}
        values = jnp.zeros((), vectors.dtype)
        for t, (step, layer) in enumerate(zip(steps, params["layers"], strict=True)):
            up = {name: linear(layer["up"][name], x) for name, x in h.items()}
            weights = perceptron(layer["radial"], radial)
            sums = convolve(up, weights, harmonics, step.paths, graph, owner)
            A = [
                linear(layer["mix"][name], sums[name]) / config.mean_neighbors
                for name in map(natural, range(step.l_max + 1))
            ]
            if step.is_first:
                A = [mix_by_species(layer["skip"][natural(l)], a, kinds) for l, a in enumerate(A)]
            new = {}
            for L, contraction in enumerate(step.contractions):
                name = natural(L)
                product = contract(contraction, layer["product"][name], A, kinds)
                new[name] = linear(layer["out"][name], product)
                if name in layer["skip"] and not step.is_first:
                    new[name] += mix_by_species(layer["skip"][name], h[name], kinds)
            h = new
            values = values + perceptron(layer["readout"], h[natural(0)][0])[:, 0]
            if between is not None and not step.is_last:
                change, carry = between(t, h[natural(0)][0], carry)
                if change is not None:
                    h = {**h, natural(0): h[natural(0)] + change[None]}
        return jnp.where(system.mask, values, 0.0), carry

    return Layered(init, energy, config.n_layers, C, C, config.cutoff, config.species)


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`mace` from the configuration in a model file."""
    return mace(load_config(MACEConfig, config))


class _Step(NamedTuple):
    """What a layer does, as far as it follows from the settings."""

    inputs: tuple[str, ...]
    l_max: int  # of the sums over neighbors
    paths: tuple[Path, ...]
    contractions: tuple[Contraction, ...]  # one for every degree that it makes
    is_first: bool
    is_last: bool


def _steps(config: MACEConfig) -> tuple[_Step, ...]:
    """Every layer; constants are computed here, once, and not while tracing."""
    steps, inputs = [], (natural(0),)
    for t in range(config.n_layers):
        is_last = t == config.n_layers - 1
        highest = 0 if is_last else config.hidden_l_max
        l_max = config.l_max if config.correlation > 1 else highest
        sums = tuple(map(natural, range(l_max + 1)))
        steps.append(
            _Step(
                inputs=inputs,
                l_max=l_max,
                paths=convolution_paths(inputs, config.l_max, sums),
                contractions=tuple(
                    contraction_to(L, l_max, config.correlation) for L in range(highest + 1)
                ),
                is_first=t == 0,
                is_last=is_last,
            )
        )
        inputs = tuple(map(natural, range(highest + 1)))
    return tuple(steps)


def _init_layer(config: MACEConfig, step: _Step, key: Array) -> Params:
    """Standard normal parameters of one layer."""
    C, n_species = config.n_channels, len(config.species)
    up, radial, mix, product, out, skip, readout = jax.random.split(key, 7)
    sums = tuple(map(natural, range(step.l_max + 1)))
    made = tuple(map(natural, range(len(step.contractions))))
    ways = {name: sum(path.out == name for path in step.paths) for name in sums}
    skipped = sums if step.is_first else tuple(name for name in made if name in step.inputs)
    is_linear = config.n_layers == 1 or not step.is_last
    widths = (C, 1) if is_linear else (C, config.readout_width, 1)
    return {
        "up": normal_weights(up, dict.fromkeys(step.inputs, (C, C))),
        "radial": init_perceptron(
            radial, (config.n_radial, *config.radial_widths, len(step.paths) * C)
        ),
        "mix": normal_weights(mix, {name: (n * C, C) for name, n in ways.items()}),
        "product": normal_weights(
            product,
            {
                name: (len(contraction.couplings), n_species, C)
                for name, contraction in zip(made, step.contractions, strict=True)
            },
        ),
        "out": normal_weights(out, dict.fromkeys(made, (C, C))),
        "skip": normal_weights(skip, dict.fromkeys(skipped, (n_species, C, C))),
        "readout": init_perceptron(readout, widths),
    }
