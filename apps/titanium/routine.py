"""Three models of titanium: from labels, from experiment, and from both by turns."""

from pathlib import Path
from typing import Any

import jax
import optax
import titanium

from mosaicmd.difftre import StatePointData, difftre, dynamics_sampler, gauss_newton
from mosaicmd.kernel import least_squares
from mosaicmd.kernel.force_matching import force_matching
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.routines import alternate, then
from mosaicmd.kernel.training import Algorithm, averaged_params, tail_average, train
from mosaicmd.kernel.trajectory import StatePoint


def learn(settings: titanium.TitaniumConfig, potential: Potential, out: Path) -> dict[str, Any]:
    """Parameters of the models ``dft``, ``exp`` and ``fused``; the same call again resumes."""
    experiment, fusion = settings.experiment, settings.fusion
    terms, batches = titanium.terms(settings.model), titanium.labelled(settings, potential)
    start = potential.init(jax.random.key(settings.seed))
    at_rest = titanium.at_rest(experiment, potential)

    tie = least_squares.near(start, (2.0 * settings.labels.tie) ** 0.5)
    fit = least_squares.fit_labels(terms, settings.labels.loss, batches, penalty=tie)
    run = {"directory": out / "dft", "description": "dft"}
    dft = train(fit, start, settings.labels.n_steps, **run).params

    loss = settings.labels.model_copy(update={"stress": fusion.stress}).loss
    about = least_squares.quadratic_loss(terms, loss, batches)(dft)
    labels = least_squares.anchor(dft, about, fusion.label_weight)
    if fusion.tie > 0.0:
        labels = least_squares.joined(labels, least_squares.near(dft, fusion.tie))
    both = alternate(
        experiment=tail_average(
            from_experiment(settings, potential, penalty=labels), experiment.average_last
        ),
        labels=force_matching(potential.energy, loss, optax.adam(fusion.label_rate)),
        counts=(1, fusion.label_steps),
    )
    first = least_squares.fit_residuals(least_squares.joined(at_rest, labels))
    run = {"batches": batches, "directory": out / "fused", "description": "fused"}
    n_steps = experiment.n_rest + fusion.n_rounds * (1 + fusion.label_steps)
    state = train(then(rest=(first, experiment.n_rest), both=(both, None)), dft, n_steps, **run)
    fused = averaged_params(state.states["both"].states["experiment"])

    tie = least_squares.near(start, experiment.tie)
    first = least_squares.fit_residuals(least_squares.joined(at_rest, tie))
    compare = tail_average(from_experiment(settings, potential), experiment.average_last)
    run = {"directory": out / "exp", "description": "exp"}
    stages = then(rest=(first, experiment.n_rest), moving=(compare, None))
    state = train(stages, start, experiment.n_rest + experiment.n_updates, **run)
    return {"dft": dft, "exp": averaged_params(state.states["moving"]), "fused": fused}


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
