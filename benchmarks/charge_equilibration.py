"""Cost of charge equilibration by number of atoms: dense, iterative, and inside a network.

Atoms of two species on a disordered cubic lattice of 2.6 Å with a net charge of 3 e; particle-mesh
Ewald planned for forces to 1e-3 eV/Å, residuals 1e-10 of where they start, float64. Times are
those of the process on one core, without compilation. Run by
`nox -s bench -- charge_equilibration`.
"""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.systems import make_system
from mosaicmd.qeq_longrange import (
    CELLIConfig,
    ChargeEquilibrationConfig,
    NetworkConfig,
    SolverConfig,
    celli,
    charge_equilibration,
    plan_coulomb,
    require_equilibrium,
)

N_ATOMS = (1000, 10_000, 30_000)
DENSE_UP_TO = 1000
SPACING, NET_CHARGE = 2.6, 3.0
SPECIES, HARDNESS, WIDTHS = (1, 8), (6.0, 9.0), (0.5, 0.7)
ELECTRONEGATIVITY = (4.5, 8.7)
PAINN = {"species": [*SPECIES], "cutoff": 5.0, "n_features": 16, "n_layers": 2, "n_radial": 8}


def disordered(n_atoms):
    rng = np.random.default_rng(0)
    n = int(np.ceil(np.cbrt(n_atoms)))
    sites = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n_atoms]
    positions = SPACING * sites + rng.uniform(-0.3, 0.3, (n_atoms, 3))
    species = rng.choice(SPECIES, n_atoms, p=[2 / 3, 1 / 3])
    return make_system(positions, species, cell=SPACING * n, total_charge=NET_CHARGE)


def seconds(function, *arguments):
    """CPU time of the second call, and its result."""
    jax.block_until_ready(function(*arguments))
    began = time.process_time()
    result = jax.block_until_ready(function(*arguments))
    return time.process_time() - began, result


def models(plan, n_atoms):
    settings = {"plan": plan, "electronegativity": ELECTRONEGATIVITY}
    settings |= {"hardness": HARDNESS, "widths": WIDTHS}
    for method in ("dense", "iterative") if n_atoms <= DENSE_UP_TO else ("iterative",):
        solver = SolverConfig(method=method)
        config = ChargeEquilibrationConfig(species=SPECIES, solver=solver, **settings)
        yield method, charge_equilibration(config)
    network = NetworkConfig(architecture="painn", config=PAINN)
    solver = SolverConfig(method="iterative")
    yield "CELLI in PaiNN", celli(CELLIConfig(network=network, solver=solver, **settings))


def main():
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jax.config.update("jax_enable_x64", True)
    print("| atoms | method | charges / s | energy and forces / s | sum of charges off by / e |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for n_atoms in N_ATOMS:
        system = disordered(n_atoms)
        widths = np.where(np.asarray(system.species) == 8, WIDTHS[1], WIDTHS[0])
        plan = plan_coulomb(system, charges=np.full(n_atoms, 0.5), widths=widths, method="pme")
        for name, model in models(plan, n_atoms):
            energy = model.potential.energy
            graph = host_graph(system, model.potential.cutoff, reverse=True)
            params = model.potential.init(jax.random.key(0))
            alone, found = seconds(jax.jit(model.equilibrium), params, system, graph)
            require_equilibrium(found)
            force = jax.jit(lambda p, s, g, e=energy: evaluate(e, p, s, g))
            whole, _ = seconds(force, params, system, graph)
            off = abs(float(jnp.sum(found.charges)) - NET_CHARGE)
            print(f"| {n_atoms} | {name} | {alone:.2f} | {whole:.2f} | {off:.0e} |", flush=True)


if __name__ == "__main__":
    main()
