"""A start for the network: force matching to a model that was learned before."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import water

from mosaicmd.kernel import units
from mosaicmd.kernel.batches import Batches, prefetch
from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.examples import Example, make_examples
from mosaicmd.kernel.force_matching import force_matching
from mosaicmd.kernel.label_errors import MatchingLoss
from mosaicmd.kernel.muon import muon
from mosaicmd.kernel.potentials import Potential, evaluate
from mosaicmd.kernel.training import train


def match(
    settings: water.WaterConfig,
    potential: Potential,
    params: Any,
    teacher: tuple[Potential, Any],
    out: Path,
) -> Any:
    """Parameters with the forces and stresses of ``teacher``; the same call again resumes."""
    run = settings.matching
    assert run is not None
    examples = labelled(settings, run, teacher, potential.cutoff, out / "frames")
    algorithm = force_matching(
        potential.energy,
        MatchingLoss(forces=run.forces, stress=run.stress),
        muon(optax.cosine_decay_schedule(run.learning_rate, run.n_steps)),
        max_gradient_norm=10.0,
    )
    state = train(
        algorithm,
        jax.tree.map(jnp.float32, params),
        run.n_steps,
        batches=prefetch(Batches(examples, run.batch_size, seed=settings.seed)),
        directory=out / "training",
        description="matching",
        show="rmse_forces_mev_per_angstrom",
        every=100,
    )
    return state.best


def labelled(
    settings: water.WaterConfig,
    run: water.MatchingConfig,
    teacher: tuple[Potential, Any],
    cutoff: float,
    directory: Path,
) -> list[Example]:
    """Frames of the teacher at all temperatures, with its forces and stresses."""
    potential, params = teacher

    def observe(params: Any, system: Any, graph: Any, momenta: Any) -> dict[str, jax.Array]:
        del momenta
        found = evaluate(potential.energy, params, system, graph, stress=True)
        assert found.stress is not None
        return {"forces": found.forces, "static_stress": found.stress}

    dynamics = water.simulation(settings, run, potential, observe=observe)
    kT = units.KELVIN * jnp.array(run.temperatures_kelvin * (run.replicas or 1))
    start = water.start_system(settings, settings.seed + 2, run.n_beads)
    key = jax.random.key(settings.seed + 2)
    state = dynamics.start(key, params, start, kT=kT, replicas=len(kT))
    skipped, kept = run.steps(run.equilibration_ps), run.steps(run.production_ps)
    _, frames = dynamics.run(params, state, skipped + kept, directory=directory)
    frames = frames.skip(skipped // run.every)
    data = [
        (
            start._replace(positions=np.asarray(frames.systems.positions[i, k])),
            Labels(
                forces=np.asarray(frames.quantities["forces"][i, k]),
                stress=np.asarray(frames.quantities["static_stress"][i, k]),
            ),
        )
        for i in range(frames.n_frames)
        for k in range(len(kT))
    ]
    return make_examples(data, cutoff, dtype=np.float32)
