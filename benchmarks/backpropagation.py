"""Cost of one gradient: DiffTRe beside backpropagation through the same molecular dynamics.

The model is that of the `water` app at its start (repulsive prior, pair spline, three-body term);
the observable is the mean coordination within 3.3 Å over the last half of the trajectory. Per
length: seconds on one core, peak memory of temporaries as XLA plans it, and the norm of the
gradient. Run by `nox -s bench -- backpropagation`.
"""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.difftre import Reweighting, Target
from mosaicmd.gnn_models import (
    PairSplineConfig,
    SoftRepulsionConfig,
    ThreeBodyConfig,
    pair_spline,
    soft_repulsion,
    three_body,
)
from mosaicmd.kernel import units
from mosaicmd.kernel.graphs import edge_components, sum_edges
from mosaicmd.kernel.integrators import langevin
from mosaicmd.kernel.neighbors import neighbor_list
from mosaicmd.kernel.observables import Observable
from mosaicmd.kernel.potentials import evaluate, sum_potentials
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.trajectory import StatePoint

KT = 296.15 * units.KELVIN
TIMESTEP, FRICTION = 10.0 * units.FEMTOSECOND, 1.0 / units.PICOSECOND
LENGTHS = (50, 100, 200, 500, 1000)
PLAIN_LIMIT = 200  # steps; beyond, plain backpropagation wants more memory than laptops have
N_BEADS, EDGE = 901, 30.0


def model():
    return sum_potentials(
        soft_repulsion(SoftRepulsionConfig(epsilon=units.KJ_PER_MOL, sigma=3.165, cutoff=6.0)),
        pair_spline(PairSplineConfig(cutoff=6.0, r_min=2.0)),
        three_body(
            ThreeBodyConfig(cutoff=4.31, decay_length=2.871, strength=300.0 * units.KJ_PER_MOL)
        ),
    )


def start_system():
    rng = np.random.default_rng(0)
    sites = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij"), -1).reshape(-1, 3)
    positions = 3.0 * sites[rng.permutation(1000)[:N_BEADS]] + rng.normal(scale=0.1, size=(901, 3))
    return make_system(positions, 8, cell=EDGE, masses=18.015, dtype=jnp.float32)


def coordination(params, system, graph, momenta=None):
    """Neighbors within a smooth radius of 3.3 Å per bead."""
    del params, momenta
    x, y, z = edge_components(system, graph)
    inside = jax.nn.sigmoid((3.3 - jnp.sqrt(x * x + y * y + z * z)) / 0.1)
    return jnp.mean(sum_edges(inside, graph, system.n_atoms))


def through_dynamics(energy_fn, plan, n_steps, checkpointed):
    """``params -> mean coordination`` with a derivative through every step."""
    integrator = langevin(TIMESTEP, FRICTION, KT)

    def mean(params, md, neighbors):
        def step(carry, index):
            md, neighbors = carry
            md = integrator.drift(md)
            neighbors = plan.update(neighbors, md.system)
            result = evaluate(energy_fn, params, md.system, neighbors.graph)
            md = integrator.kick(md, result)
            counted = index >= n_steps // 2
            value = jnp.where(counted, coordination(params, md.system, neighbors.graph), 0.0)
            return (md, neighbors), value

        body = jax.checkpoint(step) if checkpointed else step
        if not checkpointed:
            _, values = jax.lax.scan(body, (md, neighbors), jnp.arange(n_steps))
        else:  # two levels: memory grows with the square root of the length
            inner = int(np.sqrt(n_steps))
            outer = jax.checkpoint(lambda carry, indices: jax.lax.scan(body, carry, indices))
            indices = jnp.arange(n_steps - n_steps % inner).reshape(-1, inner)
            _, values = jax.lax.scan(outer, (md, neighbors), indices)
        return jnp.sum(values) / (n_steps - n_steps // 2)

    return jax.jit(jax.grad(mean))


def measure(function, *arguments):
    """Seconds of the second call, MiB of temporaries, result."""
    compiled = function.lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    began = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    return (
        time.perf_counter() - began,
        compiled.memory_analysis().temp_size_in_bytes / 2**20,
        result,
    )


def norm(tree):
    return float(jnp.sqrt(sum(jnp.sum(leaf.astype(float) ** 2) for leaf in jax.tree.leaves(tree))))


def main():
    os.sched_setaffinity(0, {0})
    jax.config.update("jax_enable_x64", True)
    potential = model()
    params = jax.tree.map(lambda p: p.astype(jnp.float32), potential.init(jax.random.key(0)))
    dynamics = Simulation(
        potential.energy, langevin(TIMESTEP, FRICTION, KT), cutoff=6.0, skin=1.5, every=5
    )
    state = dynamics.start(jax.random.key(0), params, start_system())
    state, _ = dynamics.run(params, state, 500, progress=False)
    system = state.md.system
    plan = neighbor_list(system, 6.0, skin=1.5, headroom=1.4)
    neighbors = plan.build(system)
    observable = Observable(name="coordination", unit="", per_frame=coordination, cutoff=6.0)
    target = Target(observable=observable, value=4.0, tolerance=0.1)
    reweighting = Reweighting(potential.energy, 6.0, [target], StatePoint(KT))
    print("| steps | method | MD / s | gradient / s | memory / MiB | norm of gradient |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for n_steps in LENGTHS:
        began = time.perf_counter()
        _, trajectory = dynamics.run(params, state, n_steps, progress=False)
        simulated = time.perf_counter() - began
        graphs = reweighting.graphs(trajectory.systems)
        samples = reweighting.prepare(params, trajectory, graphs)

        def mean(params, samples, graphs):
            return reweighting.predict(params, samples, graphs).values["coordination"]

        rows: list[tuple] = [
            ("DiffTRe", simulated, measure(jax.jit(jax.grad(mean)), params, samples, graphs))
        ]
        for name, checkpointed in (("backpropagation", False), ("checkpointed", True)):
            if checkpointed or n_steps <= PLAIN_LIMIT:
                function = through_dynamics(potential.energy, plan, n_steps, checkpointed)
                rows.append((name, None, measure(function, params, state.md, neighbors)))
        for name, dynamics_time, (seconds, memory, gradient) in rows:
            shown = "in gradient" if dynamics_time is None else f"{dynamics_time:.2f}"
            print(
                f"| {n_steps} | {name} | {shown} | {seconds:.2f} | {memory:.0f} "
                f"| {norm(gradient):.3g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
