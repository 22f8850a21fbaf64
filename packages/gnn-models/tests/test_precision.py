"""What float32 and products in bfloat16 cost, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models import MACEConfig, PaiNNConfig, mace, painn
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.precision import with_precision
from mosaicmd.kernel.testing import random_system

MODELS = {
    "painn": painn(PaiNNConfig(species=(1, 8), cutoff=3.5, n_features=32, n_layers=2)),
    "mace": mace(
        MACEConfig(species=(1, 8), cutoff=3.5, n_channels=16, l_max=2, hidden_l_max=1, n_layers=2)
    ),
}
WITH_JAXPR = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


def on_an_accelerator(closed, *arguments):
    """Evaluate a program, rounding factors where it asks for it, as hardware does."""

    def run(jaxpr, constants, arguments):
        known = dict(zip(jaxpr.constvars, constants, strict=True))
        known |= dict(zip(jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.eqns:
            values = [
                known[v] if not hasattr(v, "val") else jnp.asarray(v.val, v.aval.dtype)
                for v in equation.invars
            ]
            found = bind(equation, values)
            known |= dict(zip(equation.outvars, found, strict=True))
        return [known[v] if not hasattr(v, "val") else v.val for v in jaxpr.outvars]

    def bind(equation, values):
        name, settings = equation.primitive.name, dict(equation.params)
        if name in WITH_JAXPR:
            inner = next(settings[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in settings)
            return run(inner.jaxpr, inner.consts, values)
        if name == "dot_general" and "BF16_BF16_F32" in str(settings["precision"]):
            values = [jax.lax.reduce_precision(value, 8, 7) for value in values]
            settings["precision"] = None
            counted.append(name)
        assert "BF16" not in str(settings.get("jaxpr")), name
        found = equation.primitive.bind(*values, **settings)
        return found if equation.primitive.multiple_results else [found]

    counted = []
    found = run(closed.jaxpr, closed.consts, arguments)
    assert len(counted) > 10
    return found


@functools.cache
def results(name, kind):
    """Energy and forces of 24 atoms, in float64 or in float32 with products in `kind`."""
    system = random_system(3, n_atoms=24)
    potential = MODELS[name]
    params = potential.init(jax.random.key(0))
    graph = host_graph(system, potential.cutoff)
    if kind != "float64":
        system = system.astype(jnp.float32)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        potential = with_precision(potential, kind)

    def of(params, positions):
        moved = system._replace(positions=positions)
        found = evaluate(potential.energy, params, moved, graph)
        return found.energy, found.forces

    if kind != "bfloat16":
        energy, forces = jax.jit(of)(params, system.positions)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: "gpu")
            program = jax.make_jaxpr(of)(params, system.positions)
        run = jax.jit(functools.partial(on_an_accelerator, program))
        energy, forces = run(*jax.tree.leaves(params), system.positions)
    return float(energy) / system.n_atoms, np.asarray(forces, float)


@pytest.mark.parametrize("name", MODELS)
def test_errors_of_each_precision(name):
    """Per atom and of forces, relative to the forces; 24 atoms, untrained.

    Measured: float32, rounding by 6e-8, 5e-8 and 1e-6 (MACE) to 4e-6 (PaiNN); bfloat16,
    rounding by 4e-3, 1e-3 to 3e-3 and 3e-3 to 9e-3.
    """
    energy, forces = results(name, "float64")
    scale = np.sqrt(np.mean(forces**2))
    errors = {}
    for kind in ("float32", "bfloat16"):
        other, others = results(name, kind)
        errors[kind] = (
            abs(other - energy) / scale,
            np.sqrt(np.mean((others - forces) ** 2)) / scale,
        )
    assert errors["float32"][0] < 1e-6
    assert errors["float32"][1] < 2e-5
    assert 1e-5 < errors["bfloat16"][0] < 0.02
    assert 2e-4 < errors["bfloat16"][1] < 0.03
