"""A potential whose parameters are settled by its configuration: what others learn on top of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import Params, Potential, build_potential
from mosaicmd.kernel.systems import System

Array = jax.Array


def fixed(potential: Potential) -> Potential:
    """``potential`` without parameters: they are those it starts with.

    For priors: ``sum_potentials(fixed(stillinger_weber), network)`` learns the network alone.

    Args:
        potential: one whose initial parameters follow from its configuration, as those of
            classical terms do; for a network they are random numbers from key 0.
    """

    def energy(params: Params, system: System, graph: Graph) -> Array:
        del params
        return potential.energy(potential.init(jax.random.key(0)), system, graph)

    config = {"architecture": potential.architecture, "config": dict(potential.config)}
    return dataclasses.replace(
        potential, architecture="fixed", config=config, init=lambda key: {}, energy=energy
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`fixed` from the configuration in a model file."""
    return fixed(build_potential(config["architecture"], config["config"]))
