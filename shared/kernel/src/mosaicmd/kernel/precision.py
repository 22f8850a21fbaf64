"""How precisely a model computes: the type of its arrays and that of its matrix products.

``float32`` and ``float64`` are types of everything. With ``bfloat16`` arrays are in float32,
and on accelerators matrix products round their factors to 8 significant bits and add up in
float32, which is what the hardware is fastest at. Products that ask for a precision of their
own, such as those of the geometry, keep it. XLA offers no such products on CPUs: there, and in
programs exported from there, the setting is recorded and changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax

from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import (
    ChargesFn,
    EnergyFn,
    Params,
    Potential,
    build_potential,
)
from mosaicmd.kernel.systems import System

Array = jax.Array
FloatType = Literal["float32", "float64"]
Precision = Literal["float32", "float64", "bfloat16"]

_BFLOAT16 = "bfloat16_products"


def with_precision(potential: Potential, precision: Precision) -> Potential:
    """The potential with matrix products as ``precision`` has them.

    Model files record it, so every use of the model computes alike. Parameters are those of
    ``potential``; give them, and positions, the type of :func:`array_type`.
    """
    if potential.architecture == _BFLOAT16:
        potential = build_potential(**potential.config)
    return bfloat16_products(potential) if precision == "bfloat16" else potential


def array_type(precision: Precision) -> FloatType:
    """The type of positions and weights."""
    return "float64" if precision == "float64" else "float32"


def weights_type(params: Params) -> FloatType | None:
    """The widest floating-point type among the weights; ``None`` if there are none."""
    types = {str(getattr(leaf, "dtype", None)) for leaf in jax.tree.leaves(params)}
    return next((kind for kind in ("float64", "float32") if kind in types), None)


def bfloat16_products(potential: Potential) -> Potential:
    """The potential with factors of its matrix products rounded to bfloat16; see the module.

    Derivatives round the factors of their products as well.
    """

    def rounded(function: EnergyFn | ChargesFn) -> EnergyFn:
        def call(params: Params, system: System, graph: Graph) -> Array:
            on_cpu = jax.default_backend() == "cpu"
            with jax.default_matmul_precision(None if on_cpu else "BF16_BF16_F32"):
                return function(params, system, graph)

        return call

    return dataclasses.replace(
        potential,
        architecture=_BFLOAT16,
        config={"architecture": potential.architecture, "config": dict(potential.config)},
        energy=rounded(potential.energy),
        charges=None if potential.charges is None else rounded(potential.charges),
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`bfloat16_products` from the configuration in a model file."""
    return bfloat16_products(build_potential(config["architecture"], config["config"]))
