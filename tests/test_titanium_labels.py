"""Least squares on the titanium of the app: slopes by differences, the crystal at rest."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from jax.flatten_util import ravel_pytree

from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.label_errors import MatchingLoss
from mosaicmd.kernel.least_squares import (
    anchor,
    fit_labels,
    fit_residuals,
    near,
    quadratic_loss,
)
from mosaicmd.kernel.potentials import sum_potentials

APP = Path(__file__).parents[1] / "apps" / "titanium"
LOSS = MatchingLoss(energy=10.0, forces=1.0, stress=1000.0)


@pytest.fixture(scope="module")
def titanium():
    """The module of the app, gone again afterwards."""
    sys.path.insert(0, str(APP))
    yield importlib.import_module("titanium")
    sys.path.remove(str(APP))
    sys.modules.pop("titanium")


@pytest.fixture(scope="module")
def problem(titanium):
    """Settings, terms, six structures in float64, and a start that is not stationary."""
    raw = yaml.safe_load((APP / "config" / "quick.yaml").read_text())
    settings = titanium.TitaniumConfig(**raw)
    terms = titanium.terms(settings.model)
    potential = sum_potentials(*terms)
    examples = titanium.labelled(settings, potential)._examples[:6]
    wide = [jax.tree.map(_widened, example) for example in examples]
    return settings, terms, Batches(wide, 3), potential.init(jax.random.key(0))


def _widened(leaf):
    leaf = np.asarray(leaf)
    return leaf.astype(float) if leaf.dtype == np.float32 else leaf


def test_slope_is_that_of_differences(problem):
    _, terms, batches, start = problem
    quadratic = quadratic_loss(terms, LOSS, batches)
    flat, unravel = ravel_pytree(start)
    along = jax.random.normal(jax.random.key(1), flat.shape) * 1e-5
    found = quadratic(start)
    ends = [quadratic(unravel(flat + s * along)) for s in (-1.0, 1.0)]
    np.testing.assert_allclose(found.slope @ along, 0.5 * (ends[1].loss - ends[0].loss), rtol=1e-5)
    assert np.linalg.eigvalsh(found.curvature).min() > -1e-9 * np.abs(found.curvature).max()


def test_the_anchor_costs_what_the_quadratic_says(problem):
    _, terms, batches, start = problem
    about = quadratic_loss(terms, LOSS, batches)(start)
    flat, unravel = ravel_pytree(start)
    change = jax.random.normal(jax.random.key(2), flat.shape) * 1e-2
    residuals = anchor(start, about, 3.0)(unravel(flat + change))
    wanted = 3.0 * 0.5 * change @ about.curvature @ change
    np.testing.assert_allclose(0.5 * jnp.sum(residuals**2), wanted, rtol=1e-6)


def test_a_stiff_tie_keeps_parameters_and_a_soft_one_lets_labels_decide(problem):
    _, terms, batches, start = problem
    origin, _ = ravel_pytree(start)

    def after(weight):
        algorithm = fit_labels(terms, LOSS, batches, penalty=near(start, weight))
        state, metrics = algorithm.step(algorithm.init(start), None)
        return np.abs(ravel_pytree(state.params)[0] - origin).max(), metrics["loss"]

    (free, loss), (held, same) = after(0.0), after(1e6)
    np.testing.assert_allclose(loss, quadratic_loss(terms, LOSS, batches)(start).loss, rtol=1e-12)
    assert same == loss
    assert free > 1e-2
    assert held < 1e-6 * free


def test_the_full_preset_learns_labels_of_density_functional_theory(titanium):
    """A step of least squares lowers their loss; 18 temperatures are held out."""
    raw = yaml.safe_load((APP / "config" / "full.yaml").read_text())
    settings = titanium.TitaniumConfig(**raw)
    assert len(settings.heldout_kelvin) == 18
    assert len(settings.validation.temperatures_kelvin) == len(titanium.measured()) == 22
    terms = titanium.terms(settings.model)
    potential = sum_potentials(*terms)
    batches = titanium.labelled(settings, potential)
    assert batches.n_examples == 160
    start = potential.init(jax.random.key(0))
    tie = near(start, (2.0 * settings.labels.tie) ** 0.5)
    algorithm = fit_labels(terms, settings.labels.loss, batches, penalty=tie)
    state, first = algorithm.step(algorithm.init(start), None)
    _, second = algorithm.step(state, None)
    assert second["loss"] < 0.9 * first["loss"]


def test_a_cell_that_was_not_measured_is_not_learned_from(titanium):
    raw = yaml.safe_load((APP / "config" / "full.yaml").read_text())
    raw["experiment"]["temperatures_kelvin"] = [23, 73]
    with pytest.raises(ValueError, match="the cell at 73 K is interpolated"):
        titanium.TitaniumConfig(**raw)


@pytest.mark.slow
def test_experiment_at_rest_can_be_met_by_the_model(titanium, problem):
    """Six numbers, more parameters: no deviation from those measured at 4 K needs to remain."""
    settings, terms, _, start = problem
    at_rest = titanium.at_rest(settings.experiment, sum_potentials(*terms))
    fit = fit_residuals(at_rest)
    state = fit.init(start)
    for _ in range(12):
        state, _ = fit.step(state, None)
    assert float(jnp.max(jnp.abs(at_rest(state.params)))) < 0.1
