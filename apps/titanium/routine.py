"""Three models of titanium: from labels, from experiment, and from both by turns."""

from pathlib import Path
from typing import Any

import jax
import optax
import titanium

from mosaicmd.difftre import StatePointData, difftre, dynamics_sampler, gauss_newton
from mosaicmd.kernel.force_matching import force_matching
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.routines import alternate
from mosaicmd.kernel.training import Algorithm, averaged_params, tail_average, train
from mosaicmd.kernel.trajectory import StatePoint


def learn(settings: titanium.TitaniumConfig, potential: Potential, out: Path) -> dict[str, Any]:
    """Parameters of the models ``dft``, ``exp`` and ``fused``; the same call again resumes."""
    labels, experiment, fusion = settings.labels, settings.experiment, settings.fusion
    batches = titanium.labelled(settings, potential)
    start = potential.init(jax.random.key(settings.seed))

    rate = optax.cosine_decay_schedule(labels.learning_rate, labels.n_steps)
    match = force_matching(potential.energy, labels.loss, optax.adam(rate))
    run = {"batches": batches, "directory": out / "dft", "every": 50}
    dft = train(match, start, labels.n_steps, description="dft", **run).best

    loss = labels.model_copy(update={"stress": fusion.stress}).loss
    anchor = titanium.anchor(potential, loss, batches, dft, fusion.label_weight)
    compare = from_experiment(settings, potential, penalty=anchor)
    match = force_matching(potential.energy, loss, optax.adam(fusion.label_rate))
    both = alternate(
        experiment=tail_average(compare, experiment.average_last),
        labels=match,
        counts=(1, fusion.label_steps),
    )
    n_steps = fusion.n_rounds * (1 + fusion.label_steps)
    run = {"batches": batches, "directory": out / "fused", "every": 1 + fusion.label_steps}
    state = train(both, dft, n_steps, description="fused", **run)
    fused = averaged_params(state.states["experiment"])

    compare = tail_average(from_experiment(settings, potential), experiment.average_last)
    state = train(compare, start, experiment.n_updates, directory=out / "exp", description="exp")
    return {"dft": dft, "exp": averaged_params(state), "fused": fused}


def from_experiment(
    settings: titanium.TitaniumConfig, potential: Potential, **options: Any
) -> Algorithm:
    """DiffTRe on elastic constants and pressure at every temperature that is learned from."""
    run, points, measured = settings.experiment, [], titanium.measured()
    bath = titanium.thermostat(run, measured[298.0].kT)  # samplers set their own temperature
    dynamics = titanium.simulation(run, potential, bath)
    for index, kelvin in enumerate(run.temperatures_kelvin):
        point = measured[kelvin]
        system = titanium.crystal(settings, point)
        sampler = dynamics_sampler(
            dynamics,
            system,
            StatePoint(point.kT),
            n_equilibration=run.every * run.n_equilibration,
            n_production=run.every * run.n_frames,
            key=jax.random.fold_in(jax.random.key(settings.seed), index),
        )
        target = titanium.target(run, titanium.elasticity(potential, point, system), point)
        data = {"name": f"{kelvin:g}K", "sampler": sampler, "targets": [target]}
        points.append(StatePointData(**data, direct_every=run.direct_every))
    step = gauss_newton(max_divergence=run.max_divergence, ridge=run.ridge)
    return difftre(potential.energy, potential.cutoff, points, step, **options)
