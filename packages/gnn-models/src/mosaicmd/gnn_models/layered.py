"""Networks that let others see and change the scalar features of atoms between their layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from mosaicmd.kernel.config import Config, load_config
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System

Array = jax.Array

Between = Callable[[int, Array, Any], tuple[Array | None, Any]]
"""``(layer, scalars, carry) -> (change, carry)``: what happens after a layer of this index.

``scalars`` is ``[n_atoms, n_scalars]``, of no meaning for masked atoms; ``change`` is
``[n_atoms, n_changes]`` or ``None``, and what it is added to is said in `Layered`.
"""


class Layered(NamedTuple):
    """A network, and what may be put between its layers.

    ``energy(params, system, graph, between, carry)`` returns per-atom energies and the last
    ``carry``. It calls ``between`` after every layer but the last, with scalar features that
    are invariant under rotation and see no further than the layers so far. Networks with
    features of atoms add the change to these. In Allegro, which has features of ordered pairs,
    ``scalars`` are their sums over neighbors, and a change is twice as long: its first half is
    added to the scalars of all pairs around an atom, its second half to those of all pairs that
    the atom is the neighbor in, either times the envelope.
    """

    init: Callable[[Array], Params]
    energy: Callable[..., tuple[Array, Any]]
    n_layers: int
    n_scalars: int
    n_changes: int
    cutoff: float
    species: tuple[int, ...]

    def potential(self, architecture: str, config: Mapping[str, Any]) -> Potential:
        """The network as it is."""

        def energy(params: Params, system: System, graph: Graph) -> Array:
            return self.energy(params, system, graph)[0]

        return Potential(
            architecture=architecture,
            config=config,
            init=self.init,
            energy=energy,
            cutoff=self.cutoff,
            species=self.species,
        )


def layered(architecture: str, config: Mapping[str, Any]) -> Layered:
    """A network that may be looked into, by the name and configuration of a model file.

    Raises:
        ValueError: for an architecture that is none of ``allegro``, ``mace``, ``nequip`` and
            ``painn``, and for settings that it does not take.
    """
    from mosaicmd.gnn_models.allegro import AllegroConfig, allegro_layers
    from mosaicmd.gnn_models.mace import MACEConfig, mace_layers
    from mosaicmd.gnn_models.nequip import NequIPConfig, nequip_layers
    from mosaicmd.gnn_models.painn import PaiNNConfig, painn_layers

    known: dict[str, tuple[type[Config], Callable[[Any], Layered]]] = {
        "allegro": (AllegroConfig, allegro_layers),
        "mace": (MACEConfig, mace_layers),
        "nequip": (NequIPConfig, nequip_layers),
        "painn": (PaiNNConfig, painn_layers),
    }
    if architecture not in known:
        raise ValueError(
            f"{architecture!r} has no layers to put something between; known: {sorted(known)}"
        )
    settings, layers = known[architecture]
    return layers(load_config(settings, config))
