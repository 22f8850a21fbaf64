"""Charge equilibration as a layer of a graph neural network.

The network of `Layered` sees what is within its cutoff. Between two of its layers, its scalar
features give the electronegativities of the atoms; the charges in equilibrium depend on all atoms
and on the net charge; and they change the features that the following layers work with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from mosaicmd.gnn_models.layered import layered
from mosaicmd.gnn_models.radial import init_perceptron, perceptron
from mosaicmd.kernel.config import Config, load_config
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

Array = jax.Array


class NetworkConfig(Config):
    """A network by the name and the configuration that a model file has for it."""

    architecture: Literal["allegro", "mace", "nequip", "painn"]
    config: dict[str, Any]


class CELLIConfig(ChargesConfig):
    """Settings of :func:`celli`.

    ``network`` works around the layer, which stands after layer number ``after`` of it, counted
    from 1; by default before the last. ``hardness`` (eV/e²), ``widths`` (Å) and
    ``electronegativity`` (eV/e) are where the values of each species start; of the network's
    ``species`` in their order. ``electronegativity_scale`` (eV/e) is about how far features
    may move an untrained electronegativity, and ``network_scale`` (eV) multiplies the energy of
    the network. ``electronegativity_widths`` and ``embedding_widths`` are those of hidden
    layers.
    """

    network: NetworkConfig
    plan: CoulombPlan
    solver: SolverConfig = SolverConfig()
    after: int | None = Field(default=None, ge=1)
    electronegativity_scale: float = Field(default=1.0, gt=0.0)
    network_scale: float = Field(default=1.0, gt=0.0)
    electronegativity_widths: tuple[int, ...] = (32,)
    embedding_widths: tuple[int, ...] = (32,)

    @model_validator(mode="after")
    def _check(self) -> CELLIConfig:
        network = layered(self.network.architecture, self.network.config)
        if network.n_layers < 2:
            raise ValueError(
                "`network` needs two layers, for charges to stand between, got "
                f"`n_layers` {network.n_layers}"
            )
        if self.after is not None and self.after >= network.n_layers:
            raise ValueError(
                f"`after` must be less than the {network.n_layers} layers of the `network`, got "
                f"{self.after}"
            )
        self.check_charges(len(network.species))
        for name in ("electronegativity_widths", "embedding_widths"):
            if min(getattr(self, name), default=1) < 1:
                raise ValueError(f"`{name}` must be positive, got {list(getattr(self, name))}")
        return self


def celli(config: CELLIConfig) -> ChargeEquilibration:
    r"""Charge equilibration layer for long-range interactions, within any `Layered` network.

    From the scalar features ``x_i`` of an atom of species ``s`` after some layer,

    ``chi_i = chi_s + c MLP(x_i, 1)``,   ``E_Qeq = min_q chi . q + q . (J + A) q / 2``

    at ``sum q`` = the net charge ``system.total_charge`` (zero if none), with the hardness
    ``J_s > 0`` and Gaussian charges of width ``sigma_s > 0`` in the Coulomb matrix ``A``. Then
    ``MLP(x_i, q_i)`` is added to the features, which see no further than before except through
    the charges, and ``E_i = E_i,network + E_i,Qeq``.

    With ``J`` and ``sigma`` positive the energy always has a minimum under a plan that
    does not truncate (charges of Gaussians repel themselves); where a truncated one has none,
    energies are not numbers. Charges depend on the parameters of the network through one
    solution, and everything that is learned is learned through its adjoint.

    Parameters: a dictionary with ``network``, ``electronegativity`` (one per species, eV/e),
    ``raw_hardness`` and ``raw_widths`` (one per species; their softplus is the hardness in
    eV/e² and the width in Å), ``features_to_electronegativity`` and ``charges_to_features``.

    Charges differ from the publication in how they come back: here they are added to the
    scalars of any network; each pair of Allegro learns of the charges at both of its ends.

    References:
        Fuchs, Sanocki & Zavadlav, npj Comput. Mater. (2025), arXiv:2501.19179; Rappé & Goddard,
        J. Phys. Chem. 95, 3358 (1991).
    """
    network = layered(config.network.architecture, config.network.config)
    layer = (network.n_layers - 1 if config.after is None else config.after) - 1
    n_species, plan = len(network.species), config.plan

    def init(key: Array) -> Params:
        inner, chi, embedding = jax.random.split(key, 3)
        n = network.n_scalars
        return {
            "network": network.init(inner),
            **config.init_charges(n_species),
            "features_to_electronegativity": init_perceptron(
                chi, (n + 1, *config.electronegativity_widths, 1)
            ),
            "charges_to_features": init_perceptron(
                embedding, (n + 1, *config.embedding_widths, network.n_changes)
            ),
        }

    def layer_of(params: Params, system: System, graph: Graph) -> Any:
        """What goes between the layers: it carries the equilibrium and the energy out."""
        hardness, widths = positive_parameters(params, network.species, system)

        def between(k: int, scalars: Array, carry: Any) -> tuple[Array | None, Any]:
            if k != layer:
                return None, carry
            dtype = scalars.dtype
            head, embedding = (
                jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params[name])
                for name in ("features_to_electronegativity", "charges_to_features")
            )
            bare = jnp.asarray(params["electronegativity"], dtype)
            inputs = jnp.concatenate([scalars, jnp.ones_like(scalars[:, :1])], axis=1)
            chi = config.electronegativity_scale * perceptron(head, inputs)[:, 0]
            chi = chi + bare[per_species(network.species, system)]
            found = equilibrium_of_gaussians(
                system,
                graph,
                plan,
                electronegativity=chi,
                hardness=hardness,
                widths=widths,
                solver=config.solver,
            )
            charges = found.charges
            potentials = coulomb_operator(system, graph, plan, widths=widths)(charges)
            energies = charges * (chi + 0.5 * hardness * charges + 0.5 * potentials)
            inputs = jnp.concatenate([scalars, charges[:, None]], axis=1)
            change = perceptron(embedding, inputs)
            return change, (found, energies)

        return between

    def run(params: Params, system: System, graph: Graph) -> tuple[Array, Any]:
        between = layer_of(params, system, graph)
        return network.energy(params["network"], system, graph, between, None)

    def energy(params: Params, system: System, graph: Graph) -> Array:
        energies, (_, of_charges) = run(params, system, graph)
        return config.network_scale * energies + jnp.where(system.mask, of_charges, 0.0)

    def equilibrium(params: Params, system: System, graph: Graph) -> Equilibrium:
        return run(params, system, graph)[1][0]

    potential = Potential(
        architecture="celli",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=max(network.cutoff, plan.cutoff or 0.0),
        species=network.species,
        charges=lambda params, system, graph: equilibrium(params, system, graph).charges,
    )
    return ChargeEquilibration(potential, equilibrium)


def build(config: Mapping[str, Any]) -> Potential:
    """The potential of :func:`celli` from the configuration in a model file."""
    return celli(load_config(CELLIConfig, config)).potential
