"""Inverse-power repulsion between listed pairs, the prior of molecules with fixed bonds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from pydantic import Field, model_validator

from mosaicmd.gnn_models.bonded import BondedConfig, bonded
from mosaicmd.kernel.config import Energy, Length, load_config
from mosaicmd.kernel.observables.internal_coordinates import bond_length
from mosaicmd.kernel.potentials import Potential

Array = jax.Array


class ListedRepulsionConfig(BondedConfig):
    """Settings of :func:`listed_repulsion`; ``epsilon`` in eV, ``sigma`` in Å."""

    atoms: tuple[tuple[int, int], ...]
    epsilon: Energy | tuple[Energy, ...]
    sigma: Length | tuple[Length, ...]
    exponent: float = Field(default=12.0, gt=0.0)
    learnable: bool = False

    @model_validator(mode="after")
    def _check(self) -> ListedRepulsionConfig:
        self.per_set("epsilon", positive=True)
        self.per_set("sigma", positive=True)
        return self


def listed_repulsion(config: ListedRepulsionConfig) -> Potential:
    """Repulsion ``epsilon (sigma / r)^exponent`` of listed pairs, without a cutoff.

    :func:`~mosaicmd.gnn_models.soft_repulsion.soft_repulsion` acts between all neighbors;
    within a molecule, atoms a few bonds apart are closer than that allows.

    Parameters, if learnable: ``{"epsilon": [n_sets], eV, "sigma": [n_sets], Å}``, stored as
    they are; both must stay positive.
    """
    initial = {"epsilon": config.per_set("epsilon"), "sigma": config.per_set("sigma")}
    whole = config.exponent.is_integer()  # then a power is a few products
    exponent = int(config.exponent) if whole else config.exponent

    def term(params: dict[str, Array], lengths: Array) -> Array:
        return params["epsilon"] * (params["sigma"] / lengths) ** exponent

    coordinate = bond_length(config.atoms, r_max=math.inf)
    return bonded("listed_repulsion", config, coordinate, initial, term)


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`listed_repulsion` from the configuration in a model file."""
    return listed_repulsion(load_config(ListedRepulsionConfig, config))
