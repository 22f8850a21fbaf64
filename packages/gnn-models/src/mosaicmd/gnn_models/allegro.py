"""Allegro: a strictly local equivariant network on ordered pairs of atoms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from mosaicmd.gnn_models.equivariant import (
    Features,
    Path,
    clebsch_gordan,
    constant_product,
    convolution_paths,
    convolve,
    degree,
    natural,
    packed,
    spherical_harmonics,
    unpacked,
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
from mosaicmd.gnn_models.tiles import (
    Tiles,
    energies_of_tiles,
    map_tiles,
    rows_of_tile,
    tiles_of,
)
from mosaicmd.kernel.config import Config, Length, load_config
from mosaicmd.kernel.graphs import (
    FAR,
    Graph,
    edge_components,
    gather_receivers,
    gather_senders,
    sum_edges,
)
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System

Array = jax.Array

_SCALAR = natural(0)


class AllegroConfig(Config):
    """Settings of :func:`allegro`; ``cutoff`` in Å.

    Each ordered pair has ``n_scalars`` scalars and ``n_tensors`` tensors of every degree up
    to ``l_max``, with ``parity`` of both parities, else of that of spherical harmonics. The
    three widths are those of hidden layers. ``mean_neighbors`` is the number of edges per
    atom in typical data, by whose root sums are divided.
    """

    species: tuple[int, ...]
    cutoff: Length = Field(gt=0.0)
    n_scalars: int = Field(default=64, ge=1)
    n_tensors: int = Field(default=16, ge=1)
    l_max: int = Field(default=2, ge=0)
    parity: bool = True
    n_layers: int = Field(default=2, ge=1)
    n_radial: int = Field(default=8, ge=1)
    envelope_power: int = Field(default=6, ge=1)
    two_body_widths: tuple[int, ...] = (64, 64)
    latent_widths: tuple[int, ...] = (64,)
    readout_widths: tuple[int, ...] = (32,)
    mean_neighbors: float = Field(default=20.0, gt=0.0)

    @model_validator(mode="after")
    def _check(self) -> AllegroConfig:
        check_species(self.species)
        for name in ("two_body_widths", "latent_widths", "readout_widths"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise ValueError(f"`{name}` must be positive, got {widths}")
        return self


class PairState(NamedTuple):
    """What is known of every edge, and what of it stays the same in all layers."""

    scalars: Array  # [n_edges, n_scalars], zero beyond the cutoff
    tensors: Features  # by irrep [2l+1, n_edges, n_tensors]
    harmonics: list[Array]  # by degree [2l+1, n_edges]
    envelope: Array  # [n_edges, 1]


class AllegroParts(NamedTuple):
    """The parts of :func:`allegro`, for potentials that put something between its layers.

    ``embed`` is ``pairs`` of the vectors and the species at both ends of every edge, and
    ``layer(params, k, state, graph, n_atoms)`` the layer of index ``k``. What is put in between
    may sum the scalars of a `PairState` over neighbors, compute properties of atoms from these
    sums (charges, say), and change scalars on the ground of them, as long as they stay
    proportional to ``envelope``.
    """

    init: Callable[[Array], Params]
    embed: Callable[[Params, System, Graph], PairState]
    pairs: Callable[[Params, Array, Sequence[Array]], PairState]
    layer: Callable[[Params, int, PairState, Graph, int], PairState]
    readout: Callable[[Params, PairState], Array]  # [n_edges], eV


def allegro(config: AllegroConfig) -> Potential:
    r"""Strictly local equivariant interatomic potential.

    Every ordered pair ``ij`` has scalars ``x`` and tensors ``V``, to begin with

    ``x_ij = u(r_ij) MLP(z_i, z_j, B(r_ij))``,   ``V_{ij,lm,n} = (W_l x_ij)_n Y_lm(ij)``.

    In every layer the neighbors ``k`` of ``i`` are summed, with weights from their scalars,
    and multiply the tensors, channel by channel and for all allowed products ``p``,

    ``V_ij <- W [V_ij (x) sum_k (W_l x_ik) Y_l(ik) / sqrt(n)]_p``,
    ``x_ij <- (x_ij + a u(r_ij) MLP(x_ij, scalar products)) / sqrt(1 + a²)``.

    The energy is ``E_i = sum_j MLP(x_ij) / sqrt(n)``. No layer passes anything from pairs
    ``jk`` to pairs ``ij``, so the energy of an atom sees nothing beyond the cutoff however
    many layers there are.

    ======================================  ==============================================
    symbol of the paper                     name
    ======================================  ==============================================
    ``MLP_two-body``                        ``two_body``
    ``w`` of ``V^(L=0)``                    ``tensors``
    ``MLP_embed`` (linear)                  ``layers[k].environment``
    ``w`` of the products                   ``layers[k].mix``, per irrep
    ``MLP_latent``                          ``layers[k].latent``
    ``alpha``                               ``layers[k].update``, before a sigmoid
    ``MLP_output``                          ``readout``
    ``u(r)``                                ``power_envelope``
    ======================================  ==============================================

    Tensors that cannot reach the energy are not computed: the last layer makes scalars alone.

    Energies of untrained parameters are of the order of 0.1 eV: fit label minus
    ``fit_reference_energies``, and for labels of another size use
    :func:`~mosaicmd.gnn_models.scaled`.

    Parameters: a dictionary with ``two_body``, ``tensors``, ``layers`` (a tuple) and
    ``readout``; weights are drawn from the standard normal distribution, normalisations
    being part of the function.

    References:
        Musaelian, Batzner, Johansson, Sun, Owen, Kornbluth & Kozinsky, Nat. Commun. 14, 579
        (2023).
    """
    return allegro_layers(config).potential("allegro", config.model_dump(mode="json"))


def allegro_layers(config: AllegroConfig) -> Layered:
    """What :func:`allegro` is made of; sums of scalars of pairs are seen, and pairs changed."""
    parts, n_scalars = allegro_parts(config), config.n_scalars

    def energy(
        params: Params,
        system: System,
        graph: Graph,
        between: Between | None = None,
        carry: Any = None,
    ) -> tuple[Array, Any]:
        tiles = tiles_of(graph, system.n_atoms)
        if tiles is not None:
            values, carry = _by_tiles(config, parts, tiles, params, system, graph, between, carry)
            return jnp.where(system.mask, values, 0.0), carry
        state = parts.embed(params, system, graph)
        for k in range(config.n_layers):
            state = parts.layer(params, k, state, graph, system.n_atoms)
            if between is not None and k < config.n_layers - 1:
                sums = sum_edges(state.scalars, graph, system.n_atoms)
                change, carry = between(k, sums * config.mean_neighbors**-0.5, carry)
                if change is not None:
                    around = gather_receivers(change[:, :n_scalars], graph)
                    beside = gather_senders(change[:, n_scalars:], graph)
                    scalars = state.scalars + state.envelope * (around + beside)
                    state = state._replace(scalars=scalars)
        values = sum_edges(parts.readout(params, state), graph, system.n_atoms)
        return jnp.where(system.mask, values, 0.0), carry

    return Layered(
        init=parts.init,
        energy=energy,
        n_layers=config.n_layers,
        n_scalars=n_scalars,
        n_changes=2 * n_scalars,
        cutoff=config.cutoff,
        species=config.species,
    )


def _by_tiles(
    config: AllegroConfig,
    parts: AllegroParts,
    tiles: Tiles,
    params: Params,
    system: System,
    graph: Graph,
    between: Between | None,
    carry: Any,
) -> tuple[Array, Any]:
    """Energies per atom and the last ``carry``, as of the whole, for a graph in rows.

    Without anything in between, all layers of a tile follow each other. Otherwise what is known of
    pairs is kept where one is, and what was computed for it is computed again for derivatives.
    """
    n_scalars, size, steps = config.n_scalars, tiles.size, _steps(config)

    def rows(values: Array, fill: float = 0.0) -> Array:
        return tiles.divide(values.reshape(tiles.n_atoms, -1, *values.shape[1:]), fill)

    def flat(values: Array) -> Array:
        return values.reshape(-1, *values.shape[2:])

    def run(first: int, last: int, params: Params, varied: Any, fixed: Any) -> Any:
        """Layers of one tile, from what earlier ones left in ``varied``."""
        vectors, (around, beside) = flat(varied["vectors"]), fixed
        length = vectors.shape[0] // size
        own = rows_of_tile(size, length)
        ends = jnp.repeat(around, length), beside.reshape(-1)
        state = parts.pairs(params, vectors.T, ends)
        if first:
            tensors = unpacked(flat(varied["tensors"]), steps[first - 1].outputs)
            state = state._replace(scalars=flat(varied["scalars"]), tensors=tensors)
        if "around" in varied:
            change = gather_receivers(varied["around"], own) + flat(varied["beside"])
            state = state._replace(scalars=state.scalars + state.envelope * change)
        for k in range(first, last):
            state = parts.layer(params, k, state, own, size)
        if last == config.n_layers:
            return sum_edges(parts.readout(params, state), own, size)
        per_atom = functools.partial(jnp.reshape, shape=(size, length, -1))
        kept = {"scalars": per_atom(state.scalars), "tensors": per_atom(packed(state.tensors))}
        return kept, sum_edges(state.scalars, own, size)

    vectors = jnp.stack(edge_components(system, graph), axis=1)
    kinds = species_index(config.species, system)
    fixed = tiles.divide(kinds), rows(kinds[graph.senders])
    varied, first = {"vectors": rows(vectors, FAR)}, 0
    for k in range(config.n_layers - 1 if between is not None else 0):
        kept, sums = map_tiles(functools.partial(run, k, k + 1), params, varied, fixed)
        sums = tiles.rejoin(sums) * config.mean_neighbors**-0.5
        assert between is not None
        change, carry = between(k, sums, carry)
        varied, first = {"vectors": varied["vectors"], **kept}, k + 1
        if change is not None:
            varied["around"] = tiles.divide(change[:, :n_scalars])
            varied["beside"] = rows(gather_senders(change[:, n_scalars:], graph))
    final = functools.partial(run, first, config.n_layers)
    return tiles.rejoin(energies_of_tiles(final, params, varied, fixed)), carry


def allegro_parts(config: AllegroConfig) -> AllegroParts:
    """What :func:`allegro` is made of: its energy is ``readout`` after all ``layer`` of ``embed``.

    Parameters may be in another dtype than positions.
    """
    C, n_species, cutoff = config.n_tensors, len(config.species), config.cutoff
    steps = _steps(config)
    degrees = range(config.l_max + 1)
    environment = tuple(Path(_SCALAR, l, natural(l)) for l in degrees)

    def init(key: Array) -> Params:
        two_body, tensors, readout, *keys = jax.random.split(key, 3 + len(steps))
        n_inputs = 2 * n_species + config.n_radial
        return {
            "two_body": init_perceptron(
                two_body, (n_inputs, *config.two_body_widths, config.n_scalars)
            ),
            "tensors": jax.random.normal(tensors, (config.n_scalars, len(degrees) * C)),
            "layers": tuple(_init_layer(config, *pair) for pair in zip(steps, keys, strict=True)),
            "readout": init_perceptron(readout, (config.n_scalars, *config.readout_widths, 1)),
        }

    def embed(params: Params, system: System, graph: Graph) -> PairState:
        vectors = jnp.stack(edge_components(system, graph))
        kinds = species_index(config.species, system)
        ends = gather_receivers(kinds, graph), kinds[graph.senders]
        return pairs(params, vectors, ends)

    def pairs(params: Params, vectors: Array, ends: Sequence[Array]) -> PairState:
        params = _cast(params, vectors.dtype)
        distances = jnp.sqrt(jnp.sum(vectors**2, axis=0))
        harmonics = spherical_harmonics(vectors / distances[None], config.l_max)
        envelope = power_envelope(distances, cutoff, config.envelope_power)[:, None]
        ends = [jax.nn.one_hot(kinds, n_species, dtype=vectors.dtype) for kinds in ends]
        inputs = jnp.concatenate([*ends, bessel_basis(distances, cutoff, config.n_radial)], axis=1)
        scalars = envelope * perceptron(params["two_body"], inputs)
        weights = linear(params["tensors"], scalars)
        tensors = {
            natural(l): weights[None, :, l * C : (l + 1) * C] * harmonics[l][..., None]
            for l in degrees
        }
        return PairState(scalars, tensors, harmonics, envelope)

    def layer(params: Params, k: int, state: PairState, graph: Graph, n_atoms: int) -> PairState:
        step, params = steps[k], _cast(params["layers"][k], state.scalars.dtype)
        weights = linear(params["environment"], state.scalars) * config.mean_neighbors**-0.5
        ones = {_SCALAR: jnp.ones((1, n_atoms, C), weights.dtype)}
        around = convolve(ones, weights, state.harmonics, environment, graph)
        at_center = {
            name: gather_receivers(x.swapaxes(0, 1), graph).swapaxes(0, 1)
            for name, x in around.items()
        }
        products = _products(state.tensors, at_center, step.paths)
        invariant = products[_SCALAR].reshape(graph.n_edges, -1)
        latent = perceptron(params["latent"], jnp.concatenate([state.scalars, invariant], axis=1))
        update = jax.nn.sigmoid(params["update"])
        scalars = state.scalars + update * state.envelope * latent
        scalars = scalars * jax.lax.rsqrt(1.0 + update**2)
        tensors = {name: linear(weight, products[name]) for name, weight in params["mix"].items()}
        return state._replace(scalars=scalars, tensors=tensors)

    def readout(params: Params, state: PairState) -> Array:
        weights = _cast(params["readout"], state.scalars.dtype)
        return perceptron(weights, state.scalars)[:, 0] * config.mean_neighbors**-0.5

    return AllegroParts(init, embed, pairs, layer, readout)


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`allegro` from the configuration in a model file."""
    return allegro(load_config(AllegroConfig, config))


class _Step(NamedTuple):
    """What a layer does, as far as it follows from the settings."""

    paths: tuple[Path, ...]
    outputs: tuple[str, ...]  # tensors that go on


def _steps(config: AllegroConfig) -> tuple[_Step, ...]:
    """Every layer, with the products that can be made and that matter for the energy."""
    names = [natural(l) for l in range(config.l_max + 1)]
    hidden = tuple(names)
    if config.parity:
        hidden += tuple(name[:-1] + "eo"[name[-1] == "e"] for name in names)
    hidden = tuple(sorted(hidden))
    made = [tuple(names)]
    for _ in range(config.n_layers - 1):
        paths = convolution_paths(made[-1], config.l_max, hidden)
        made.append(tuple(name for name in hidden if any(path.out == name for path in paths)))
    steps, outputs = [], ()
    for inputs in reversed(made):
        wanted = tuple(sorted({*outputs, _SCALAR}))
        paths = convolution_paths(inputs, config.l_max, wanted)
        steps.append(_Step(paths, outputs))
        needed = {path.first for path in convolution_paths(hidden, config.l_max, wanted)}
        outputs = tuple(name for name in hidden if name in needed)
    steps.reverse()
    return tuple(
        _Step(step.paths, tuple(n for n in step.outputs if any(p.out == n for p in step.paths)))
        for step in steps
    )


def _products(first: Features, second: Features, paths: Sequence[Path]) -> Features:
    """All products of tensors and environments, ``[2l+1, n_edges, n_paths_to_it * n_tensors]``.

    Products of one pair of degrees are formed once, and coupled to all results by one
    constant matrix.
    """
    blocks: dict[tuple[str, int], list[Path]] = {}
    for path in paths:
        blocks.setdefault((path.first, path.degree), []).append(path)
    found: dict[Path, Array] = {}
    for (name, l2), group in blocks.items():
        x, y = first[name], second[natural(l2)]
        product = (x[:, None] * y[None]).reshape(x.shape[0] * y.shape[0], -1)
        matrices = [
            np.sqrt(2 * l3 + 1) * clebsch_gordan(degree(name), l2, l3).reshape(-1, 2 * l3 + 1)
            for l3 in (degree(path.out) for path in group)
        ]
        coupled = constant_product(np.concatenate(matrices, axis=1).T, product)
        start = 0
        for path in group:
            size = 2 * degree(path.out) + 1
            found[path] = coupled[start : start + size].reshape(size, *x.shape[1:])
            start += size
    outputs: dict[str, list[Array]] = {}
    for path in paths:
        outputs.setdefault(path.out, []).append(found[path])
    return {name: jnp.concatenate(parts, axis=2) for name, parts in outputs.items()}


def _init_layer(config: AllegroConfig, step: _Step, key: Array) -> Params:
    """Parameters of one layer; all but ``update`` standard normal."""
    C, n_scalars = config.n_tensors, config.n_scalars
    environment, latent, mix = jax.random.split(key, 3)
    ways = {path.out: sum(other.out == path.out for other in step.paths) for path in step.paths}
    widths = (n_scalars + ways[_SCALAR] * C, *config.latent_widths, n_scalars)
    return {
        "environment": jax.random.normal(environment, (n_scalars, (config.l_max + 1) * C)),
        "latent": init_perceptron(latent, widths),
        "update": jnp.zeros(()),
        "mix": normal_weights(mix, {name: (ways[name] * C, C) for name in step.outputs}),
    }


def _cast(params: Params, dtype: jax.typing.DTypeLike) -> Params:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
