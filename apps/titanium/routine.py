"""Three models of titanium: from labels, from experiment, and from both by turns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import titanium
from jax.flatten_util import ravel_pytree

from mosaicmd.difftre import StatePointData, difftre, dynamics_sampler, gauss_newton
from mosaicmd.kernel.force_matching import force_matching
from mosaicmd.kernel.least_squares import (
    Quadratic,
    Residuals,
    anchor,
    fit_labels,
    fit_residuals,
    least_squares,
    near,
    quadratic_loss,
)
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

    fit = fit_labels(terms, settings.labels.loss, batches)
    if settings.labels.tie > 0.0:
        about = tied(
            quadratic_loss(terms, settings.labels.loss, batches), start, settings.labels.tie
        )
        fit = least_squares(about, lambda params: about(params).loss)
    run = {"directory": out / "dft", "description": "dft"}
    dft = train(fit, start, settings.labels.n_steps, **run).params

    loss = settings.labels.model_copy(update={"stress": fusion.stress}).loss
    known = anchor(dft, quadratic_loss(terms, loss, batches)(dft), fusion.label_weight)
    labels = known if fusion.tie == 0.0 else joined(known, near(dft, fusion.tie))
    both = alternate(
        experiment=tail_average(
            from_experiment(settings, potential, penalty=labels), experiment.average_last
        ),
        labels=force_matching(potential.energy, loss, optax.adam(fusion.label_rate)),
        counts=(1, fusion.label_steps),
    )
    first = fit_residuals(lambda params: jnp.concatenate([at_rest(params), labels(params)]))
    run = {"batches": batches, "directory": out / "fused", "description": "fused"}
    n_steps = experiment.n_rest + fusion.n_rounds * (1 + fusion.label_steps)
    state = train(then(rest=(first, experiment.n_rest), both=(both, None)), dft, n_steps, **run)
    fused = averaged_params(state.states["both"].states["experiment"])

    tie = near(start, experiment.tie)
    first = fit_residuals(lambda params: jnp.concatenate([at_rest(params), tie(params)]))
    compare = tail_average(from_experiment(settings, potential), experiment.average_last)
    run = {"directory": out / "exp", "description": "exp"}
    n_steps = experiment.n_rest + experiment.n_updates
    state = train(
        then(rest=(first, experiment.n_rest), moving=(compare, None)), start, n_steps, **run
    )
    return {"dft": dft, "exp": averaged_params(state.states["moving"]), "fused": fused}


def tied(
    quadratic: Callable[[Any], Quadratic], start: Any, weight: float
) -> Callable[[Any], Quadratic]:
    """The loss and ``weight`` times the square sum of all changes of parameters."""
    origin, _ = ravel_pytree(start)

    def about(params: Any) -> Quadratic:
        found, change = quadratic(params), np.asarray(ravel_pytree(params)[0] - origin)
        return Quadratic(
            found.loss + weight * float(change @ change),
            found.slope + 2.0 * weight * change,
            found.curvature + 2.0 * weight * np.eye(len(change)),
        )

    return about


def joined(*residuals: Residuals) -> Residuals:
    """All of them at once."""
    return lambda params: jnp.concatenate([of(params) for of in residuals])


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
