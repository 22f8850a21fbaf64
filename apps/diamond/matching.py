"""A start for the network: force matching to the model that another preset learns."""

from pathlib import Path
from typing import Any

import diamond
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mosaicmd.kernel.batches import Batches, prefetch
from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.examples import Example, make_examples
from mosaicmd.kernel.force_matching import force_matching
from mosaicmd.kernel.graphs import host_graph, pad_graph
from mosaicmd.kernel.label_errors import MatchingLoss
from mosaicmd.kernel.potentials import Potential, evaluate
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.training import train

_MOST_NEIGHBORS = 16  # nearest and next


def match(
    settings: diamond.DiamondConfig,
    potential: Potential,
    params: Any,
    teacher: tuple[Potential, Any],
    out: Path,
) -> Any:
    """Parameters with the forces and stresses of ``teacher``; the same call again resumes."""
    run = settings.matching
    assert run is not None
    examples = labelled(settings, teacher, potential.cutoff)
    last = run.n_cells // 10
    learned, held_out = (
        Batches(part, run.batch_size, seed=settings.seed)
        for part in (examples[:-last], examples[-last:])
    )
    algorithm = force_matching(
        potential.energy,
        MatchingLoss(forces=1.0, stress=run.stress),
        optax.adam(optax.cosine_decay_schedule(run.learning_rate, run.n_steps)),
        max_gradient_norm=10.0,
        validation=held_out,
    )
    state = train(
        algorithm,
        jax.tree.map(jnp.float32, params),
        run.n_steps,
        batches=prefetch(learned),
        directory=out,
        description="matching",
        show="rmse_forces_mev_per_angstrom",
        every=500,
    )
    return state.best


def labelled(
    settings: diamond.DiamondConfig, teacher: tuple[Potential, Any], cutoff: float
) -> list[Example]:
    """Cells with the forces and stresses of the teacher, ready for a model of this cutoff."""
    potential, params = teacher
    found = jax.jit(
        lambda system, graph: evaluate(potential.energy, params, system, graph, stress=True)
    )
    data = []
    for system in cells(settings):
        n_atoms = system.n_atoms
        graph = host_graph(system, potential.cutoff)
        graph = pad_graph(graph, _MOST_NEIGHBORS * n_atoms, n_atoms=n_atoms)
        values = jax.device_get(found(system, graph))
        data.append((system, Labels(forces=values.forces, stress=values.stress)))
    return make_examples(data, cutoff, dtype=np.float32)


def cells(settings: diamond.DiamondConfig) -> list[System]:
    """Eight cubic cells, strained in all six ways and then rattled."""
    run = settings.matching
    assert run is not None
    random = np.random.default_rng(settings.seed)
    ideal = diamond.lattice(settings, 2)
    made = []
    for _ in range(run.n_cells):
        strain = run.strain * random.standard_normal((3, 3))
        deformation = np.eye(3) + 0.5 * (strain + strain.T)
        moved = run.displacement * random.standard_normal(ideal.positions.shape)
        made.append(
            ideal._replace(
                positions=np.asarray(ideal.positions) @ deformation + moved,
                cell=np.asarray(ideal.cell) @ deformation,
            )
        )
    return made
