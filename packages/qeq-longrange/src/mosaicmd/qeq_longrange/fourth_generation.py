"""The fourth-generation high-dimensional neural network: charges first, then a local energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from mosaicmd.kernel.config import load_config
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System
from mosaicmd.qeq_longrange.charge_equilibration import (
    ChargeEquilibration,
    SolverConfig,
    equilibrium_of_gaussians,
)
from mosaicmd.qeq_longrange.coulomb import per_species
from mosaicmd.qeq_longrange.electrostatics import coulomb_operator
from mosaicmd.qeq_longrange.equilibrium import Equilibrium
from mosaicmd.qeq_longrange.learned_charges import ChargesConfig, positive_parameters
from mosaicmd.qeq_longrange.plans import CoulombPlan
from mosaicmd.qeq_longrange.symmetry_functions import SymmetryFunctionsConfig, symmetry_functions

Array = jax.Array


class FourthGenerationConfig(ChargesConfig):
    """Settings of :func:`fourth_generation`.

    ``hardness`` (eV/e²), ``widths`` (Å) and ``electronegativity`` (eV/e) are where the values of
    each of the ``symmetry_functions.species`` start, in their order.
    """

    symmetry_functions: SymmetryFunctionsConfig
    plan: CoulombPlan
    solver: SolverConfig = SolverConfig()
    charge_widths: tuple[int, ...] = (15, 15)
    energy_widths: tuple[int, ...] = (15, 15)
    feature_scale: float = Field(default=1.0, gt=0.0)

    @model_validator(mode="after")
    def _check(self) -> FourthGenerationConfig:
        self.check_charges(len(self.symmetry_functions.species))
        for name in ("charge_widths", "energy_widths"):
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(f"`{name}` must be positive, got {list(getattr(self, name))}")
        return self


def fourth_generation(config: FourthGenerationConfig) -> ChargeEquilibration:
    r"""Fourth-generation high-dimensional neural network potential.

    With symmetry functions ``G_i`` and networks per species,

    ``chi_i = chi_s + NN(G_i)``,  ``q = argmin chi . q + q . (J + A) q / 2`` at the net charge,
    ``E = q . A q / 2 + sum_i NN(G_i, q_i)``,

    as in :func:`~mosaicmd.qeq_longrange.celli.celli`, but the energy of equilibration is not
    part of the energy: the charges are learned from charges alone, and then kept. With
    ``mosaicmd train`` that is one run with a weight for `charges` only, and another
    with ``init_from`` the first, ``freeze: [charges]`` and weights for energies and forces.

    Parameters: ``charges`` (``networks``, ``electronegativity``, ``raw_hardness``,
    ``raw_widths``) and ``energy``, networks per species with tanh between layers.

    Three things differ from the paper: the angular functions leave out the third side of a
    triangle, the width of charges may be learned, and the Coulomb energy is not screened at
    short range.

    References:
        Ko, Finkler, Goedecker & Behler, Nat. Commun. 12, 398 (2021).
    """
    of, plan = config.symmetry_functions, config.plan
    species, n = of.species, of.n_functions

    def init(key: Array) -> Params:
        first, second = jax.random.split(key)
        return {
            "charges": {
                "networks": _init_networks(first, len(species), (n, *config.charge_widths, 1)),
                **config.init_charges(len(species)),
            },
            "energy": _init_networks(second, len(species), (n + 1, *config.energy_widths, 1)),
        }

    def solved(params: Params, system: System, graph: Graph) -> tuple[Array, Equilibrium]:
        own = params["charges"]
        features = config.feature_scale * symmetry_functions(of, system, graph)
        index = per_species(species, system)
        chi = _networks(own["networks"], features, index)
        chi = chi + jnp.asarray(own["electronegativity"], chi.dtype)[index]
        hardness, widths = positive_parameters(own, species, system)
        found = equilibrium_of_gaussians(
            system,
            graph,
            plan,
            electronegativity=chi,
            hardness=hardness,
            widths=widths,
            solver=config.solver,
        )
        return features, found

    def energy(params: Params, system: System, graph: Graph) -> Array:
        features, found = solved(params, system, graph)
        charges = found.charges
        _, widths = positive_parameters(params["charges"], species, system)
        potentials = coulomb_operator(system, graph, plan, widths=widths)(charges)
        inputs = jnp.concatenate([features, charges[:, None]], axis=1)
        local = _networks(params["energy"], inputs, per_species(species, system))
        return jnp.where(system.mask, local + 0.5 * charges * potentials, 0.0)

    def equilibrium(params: Params, system: System, graph: Graph) -> Equilibrium:
        return solved(params, system, graph)[1]

    potential = Potential(
        architecture="fourth_generation",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=max(of.cutoff, plan.cutoff or 0.0),
        species=species,
        charges=lambda params, system, graph: equilibrium(params, system, graph).charges,
    )
    return ChargeEquilibration(potential, equilibrium)


def build(config: Mapping[str, Any]) -> Potential:
    """The potential of :func:`fourth_generation` from the configuration in a model file."""
    return fourth_generation(load_config(FourthGenerationConfig, config)).potential


def _init_networks(key: Array, n_species: int, widths: tuple[int, ...]) -> Params:
    """One network per species: weights scaled by the root of their inputs, biases zero."""
    layers = []
    for sub, n_in, n_out in zip(
        jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True
    ):
        weight = jax.random.normal(sub, (n_species, n_in, n_out)) / np.sqrt(n_in)
        layers.append({"weight": weight, "bias": jnp.zeros((n_species, n_out))})
    return tuple(layers)


def _networks(layers: Params, inputs: Array, index: Array) -> Array:
    """The output of the network of its species for every atom, ``[n_atoms]``."""
    n_species = layers[0]["weight"].shape[0]
    x = jnp.broadcast_to(inputs[None], (n_species, *inputs.shape))
    for k, layer in enumerate(layers):
        weight, bias = (jnp.asarray(layer[name], x.dtype) for name in ("weight", "bias"))
        x = jnp.tanh(x) if k > 0 else x
        x = jnp.matmul(x, weight, precision="highest") + bias[:, None]
    return jnp.take_along_axis(x[..., 0], index[None], axis=0)[0]
