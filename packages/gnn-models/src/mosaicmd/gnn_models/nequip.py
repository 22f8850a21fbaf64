"""NequIP: an equivariant message-passing network of tensor products and gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from mosaicmd.gnn_models.equivariant import (
    Features,
    Path,
    convolution_paths,
    convolve,
    degree,
    in_blocks,
    mix_by_species,
    natural,
    spherical_harmonics,
)
from mosaicmd.gnn_models.layered import Between, Layered
from mosaicmd.gnn_models.pairs import check_species, species_index
from mosaicmd.gnn_models.radial import (
    init_perceptron,
    linear,
    normal_weights,
    perceptron,
    power_envelope,
    scaled_silu,
    scaled_tanh,
)
from mosaicmd.kernel.config import Config, Length, load_config
from mosaicmd.kernel.graphs import Graph, edge_components
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System

Array = jax.Array

_SCALAR = natural(0)


class NequIPConfig(Config):
    """Settings of :func:`nequip`; ``cutoff`` in Å. Defaults are those of the published code.

    Each atom has ``n_features`` features of every degree up to ``l_max``, with ``parity`` of
    both parities, else of that of spherical harmonics. ``mean_neighbors`` is the number of
    edges per atom in typical data, by whose root sums are divided.
    """

    species: tuple[int, ...]
    cutoff: Length = Field(gt=0.0)
    n_features: int = Field(default=32, ge=2)
    l_max: int = Field(default=1, ge=0)
    parity: bool = True
    n_layers: int = Field(default=4, ge=1)
    n_radial: int = Field(default=8, ge=1)
    envelope_power: int = Field(default=6, ge=1)
    radial_widths: tuple[int, ...] = (64, 64)
    mean_neighbors: float = Field(default=20.0, gt=0.0)

    @model_validator(mode="after")
    def _check(self) -> NequIPConfig:
        check_species(self.species)
        if not self.radial_widths or min(self.radial_widths) < 1:
            raise ValueError(f"`radial_widths` must be positive, got {self.radial_widths}")
        return self


def nequip(config: NequIPConfig) -> Potential:
    r"""Neural equivariant interatomic potential: convolutions with harmonics, and gates.

    Atoms start with a learned scalar vector per species. In every layer

    ``f_i = W_2 sum_j [R_p(r_ij) (W_1 h_j) (x) Y_l(ij)]_p / sqrt(n) + W_{z_i} h_i``,

    where the products ``p`` act channel by channel; then a gate makes it nonlinear: even
    scalars pass a SiLU, odd ones a tanh, and all other features are multiplied by a SiLU of
    scalars of their own. Two linear layers read the energy from the final scalars. The
    energy of an atom depends on atoms up to ``n_layers`` cutoffs away.

    =======================================  =============================================
    symbol of the paper                      name
    =======================================  =============================================
    ``V^(0)``                                ``embedding``
    radial basis, ``n`` frequencies          ``frequencies``, learnable
    ``R(r_ij)``                              ``layers[t].radial``, a network without biases
    self-interaction before, after           ``layers[t].{before,after}``, per irrep
    self-connection                          ``layers[t].skip``, per irrep
    gate                                     the last channels of ``after`` to scalars
    output block                             ``readout``
    =======================================  =============================================

    Features that cannot reach the energy, such as pseudovectors before the last layer, are
    in the published code but not here. What a species selects is not divided by the root of
    the number of species. Without ``parity`` the model is still invariant under reflections,
    where the published code is not.

    Energies of untrained parameters are of the order of 1 eV: fit label minus
    ``fit_reference_energies``, and for labels of another size use
    :func:`~mosaicmd.gnn_models.scaled`.

    Parameters: a dictionary with ``embedding``, ``frequencies``, ``layers`` (a tuple) and
    ``readout``; weights are drawn from the standard normal distribution, normalisations
    being part of the function.

    References:
        Batzner, Musaelian, Sun, Geiger, Mailoa, Kornbluth, Molinari, Smidt & Kozinsky,
        Nat. Commun. 13, 2453 (2022).
    """
    return nequip_layers(config).potential("nequip", config.model_dump(mode="json"))


def nequip_layers(config: NequIPConfig) -> Layered:
    """What :func:`nequip` is made of; the even scalars of atoms may be changed."""
    F, n_species, cutoff = config.n_features, len(config.species), config.cutoff
    steps = _steps(config)

    def init(key: Array) -> Params:
        embedding, readout, *keys = jax.random.split(key, 2 + len(steps))
        return {
            "embedding": jax.random.normal(embedding, (n_species, F)),
            "frequencies": jnp.pi * jnp.arange(1.0, config.n_radial + 1.0),
            "layers": tuple(_init_layer(config, *pair) for pair in zip(steps, keys, strict=True)),
            "readout": init_perceptron(readout, (F, F // 2, 1)),
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
        waves = jnp.sin(params["frequencies"][None] / cutoff * distances[:, None])
        envelope = power_envelope(distances, cutoff, config.envelope_power)
        radial = waves * (2.0 / cutoff * envelope / distances)[:, None]
        kinds = species_index(config.species, system)

        h = {_SCALAR: params["embedding"][kinds][None]}
        for t, (step, layer) in enumerate(zip(steps, params["layers"], strict=True)):
            before = {name: linear(layer["before"][name], x) for name, x in h.items()}
            weights = perceptron(layer["radial"], radial) * config.mean_neighbors**-0.5
            sums = convolve(before, weights, harmonics, step.paths, graph, owner)
            new = {name: linear(layer["after"][name], x) for name, x in sums.items()}
            for name, weight in layer["skip"].items():
                new[name] += mix_by_species(weight, h[name], kinds)
            h = _gated(new, F)
            if between is not None and t < config.n_layers - 1:
                change, carry = between(t, h[_SCALAR][0], carry)
                if change is not None:
                    h = {**h, _SCALAR: h[_SCALAR] + change[None]}
        first, second = params["readout"]
        values = linear(second, linear(first, h[_SCALAR][0]))[:, 0]
        return jnp.where(system.mask, values, 0.0), carry

    return Layered(init, energy, config.n_layers, F, F, cutoff, config.species)


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`nequip` from the configuration in a model file."""
    return nequip(load_config(NequIPConfig, config))


class _Step(NamedTuple):
    """What a layer does, as far as it follows from the settings."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    paths: tuple[Path, ...]


def _steps(config: NequIPConfig) -> tuple[_Step, ...]:
    """Every layer, with the irreps that can be made and that matter for the energy."""
    names = [natural(l) for l in range(config.l_max + 1)]
    if config.parity:
        names += [name[:-1] + "eo"[name[-1] == "e"] for name in names]
    hidden = tuple(sorted(names))
    made: list[tuple[str, ...]] = [(_SCALAR,)]
    for _ in range(config.n_layers):
        paths = convolution_paths(made[-1], config.l_max, hidden)
        made.append(tuple(name for name in hidden if any(path.out == name for path in paths)))
    wanted: tuple[str, ...] = (_SCALAR,)
    steps = []
    for can, gives in zip(made[-2::-1], made[:0:-1], strict=True):
        outputs = tuple(name for name in gives if name in wanted)
        paths = convolution_paths(hidden, config.l_max, outputs)
        # scalars gate the others, so a layer always makes them
        wanted = tuple({path.first for path in paths} | {_SCALAR})
        inputs = tuple(name for name in can if name in wanted)
        paths = convolution_paths(inputs, config.l_max, outputs)
        steps.append(_Step(inputs, outputs, paths))
    return tuple(reversed(steps))


def _gated(features: Features, n_features: int) -> Features:
    """Scalars through their nonlinearity, the others times a SiLU of scalars of their own.

    Even scalars come with the gates, ``n_features`` for every irrep that is not a scalar.
    """
    scalars = features[_SCALAR]
    result = {_SCALAR: scaled_silu(scalars[..., :n_features])}
    gates = scaled_silu(scalars[..., n_features:])
    start = 0
    for name, x in features.items():
        if name == _SCALAR:
            continue
        if degree(name) == 0:
            result[name] = scaled_tanh(x)
        else:
            result[name] = x * gates[..., start : start + n_features]
            start += n_features
    return dict(sorted(result.items()))


def _init_layer(config: NequIPConfig, step: _Step, key: Array) -> Params:
    """Standard normal parameters of one layer."""
    F, n_species = config.n_features, len(config.species)
    before, radial, after, skip = jax.random.split(key, 4)
    n_gated = sum(degree(name) > 0 for name in step.outputs)
    width = {name: F * (1 + n_gated if name == _SCALAR else 1) for name in step.outputs}
    ways = {name: sum(path.out == name for path in step.paths) for name in step.outputs}
    kept = [name for name in step.outputs if name in step.inputs]
    return {
        "before": normal_weights(before, dict.fromkeys(step.inputs, (F, F))),
        "radial": init_perceptron(
            radial, (config.n_radial, *config.radial_widths, len(step.paths) * F)
        ),
        "after": normal_weights(after, {name: (n * F, width[name]) for name, n in ways.items()}),
        "skip": normal_weights(skip, {name: (n_species, F, width[name]) for name in kept}),
    }
