"""From reweighted averages to new parameters: first order, and Gauss–Newton.

An `Update` sees all state points through a `Problem` and proposes new parameters. Both
updates hold the step back so that the frames at hand still say something about where it
leads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from mosaicmd.difftre.reweighting import Linearised, Prediction, Reweighting, Samples
from mosaicmd.kernel.graphs import Graph

Array = jax.Array
Params = Any
Penalty = Callable[[Params], Array]
"""``params -> residuals``; half their sum of squares is added to the loss."""


class Problem(NamedTuple):
    """The state points with their frames, as an update sees them."""

    reweightings: tuple[Reweighting, ...]
    samples: tuple[Samples, ...]
    graphs: tuple[Graph | None, ...]
    penalty: Penalty | None

    def n_eff(self, params: Params) -> np.ndarray:
        """Effective sample size of every state point at ``params``."""
        return np.array([float(r.n_eff(params, s, g)) for r, s, g in self._each()])

    def loss_and_gradient(self, params: Params) -> tuple[float, Params, list[Prediction]]:
        """Loss summed over state points and penalty, and its gradient."""
        loss, gradient, predictions = 0.0, jax.tree.map(jnp.zeros_like, params), []
        for reweighting, samples, graphs in self._each():
            (value, prediction), slope = reweighting.loss_and_gradient(params, samples, graphs)
            loss += float(value)
            gradient = jax.tree.map(jnp.add, gradient, slope)
            predictions.append(prediction)
        if self.penalty is not None:
            value, slope = jax.value_and_grad(_half_square(self.penalty))(params)
            loss += float(value)
            gradient = jax.tree.map(jnp.add, gradient, slope)
        return loss, gradient, predictions

    def loss(self, params: Params) -> float:
        """Loss summed over state points and penalty, reweighted to ``params``."""
        total = 0.0
        for reweighting, samples, graphs in self._each():
            values = reweighting.predict(params, samples, graphs).values
            total += sum(float(t.loss(values[t.observable.name])) for t in reweighting.targets)
        if self.penalty is not None:
            total += float(_half_square(self.penalty)(params))
        return total

    def linearise(self, params: Params) -> list[Linearised]:
        """Predictions with Jacobian and metric, one per state point."""
        return [r.linearise(params, s, g) for r, s, g in self._each()]

    def _each(self) -> zip:
        return zip(self.reweightings, self.samples, self.graphs, strict=True)


class Update(NamedTuple):
    """``init(params) -> state``; ``step(problem, params, state) -> (params, state, info)``."""

    init: Callable[[Params], Any]
    step: Callable[[Problem, Params, Any], tuple[Params, Any, UpdateInfo]]


class UpdateInfo(NamedTuple):
    """What an update saw and did."""

    loss: float  # before the step
    predictions: list[Prediction]  # before the step, one per state point
    step_scale: float  # fraction of the proposed step that was taken
    n_eff: np.ndarray  # of every state point after the step


def first_order(
    optimizer: optax.GradientTransformation,
    *,
    keep_fraction: float = 0.0,
    max_halvings: int = 10,
) -> Update:
    """The published update: gradient of the reweighted loss into an optax optimiser.

    Args:
        optimizer: for example ``optax.adam(schedule)``.
        keep_fraction: the step is halved until every state point keeps this effective
            share of its frames; 0 takes it as it is.
        max_halvings: at most this often.

    References:
        Thaler & Zavadlav, Nat. Commun. 12, 6884 (2021).
    """
    _check_fraction(keep_fraction)

    def step(problem: Problem, params: Params, state: Any) -> tuple[Params, Any, UpdateInfo]:
        loss, gradient, predictions = problem.loss_and_gradient(params)
        change, state = optimizer.update(gradient, state, params)
        params, scale, n_eff = _backtrack(problem, params, change, keep_fraction, max_halvings)
        return params, state, UpdateInfo(loss, predictions, scale, n_eff)

    return Update(optimizer.init, step)


def gauss_newton(
    *,
    max_divergence: float = 8.0,
    damping: float = 1.0e-2,
    ridge: float = 1.0e-10,
    keep_fraction: float = 0.0,
    descend: bool = False,
    max_halvings: int = 10,
) -> Update:
    r"""Levenberg–Marquardt step in the Fisher metric of the ensemble.

    Solves ``(J^T J + P^T P + mu F) delta = -(J^T r + P^T p)`` with residuals ``r`` of the
    targets (cut at their ``clip``), their Jacobian ``J`` from the reweighting covariances,
    the penalty ``p`` with Jacobian ``P``, and ``F = beta^2 cov(dU/dtheta)``. The damping
    ``mu`` is the least for which ``delta^T F delta <= max_divergence``: ``F`` measures the
    relative entropy ``delta^T F delta / 2`` between the ensembles before and after, so
    steps are long where structure does not care and short where it does.

    Args:
        max_divergence: bound on ``delta^T F delta``.
        damping: least ``mu``: combinations of parameters that lower the loss by less than
            about this per unit of divergence stay, since noise would move them.
        ridge: the diagonal of what is solved grows by this share of it (Marquardt). Parameters
            that can stand for each other, such as the two factors of a product, have
            combinations that neither target nor frame feels to first order; 1e-3 keeps
            steps along them short. Of more parameters than residuals and frames, as those of a
            network, it is the share of the largest eigenvalue.
        keep_fraction: as in :func:`first_order`.
        descend: the step is also halved until the loss, reweighted to where it leads, is not
            above that before: networks bend within steps that frames allow.
        max_halvings: as in :func:`first_order`.

    References:
        Levenberg, Q. Appl. Math. 2, 164 (1944); Marquardt, J. SIAM 11, 431 (1963); Amari,
        Neural Comput. 10, 251 (1998).
    """
    _check_fraction(keep_fraction)
    if not (max_divergence > 0.0 and damping > 0.0 and ridge > 0.0):
        raise ValueError("`max_divergence`, `damping` and `ridge` must be positive")

    def step(problem: Problem, params: Params, state: Any) -> tuple[Params, Any, UpdateInfo]:
        flat, unravel = ravel_pytree(params)
        linearised = problem.linearise(params)
        loss, equations = _equations(problem, params, linearised)
        bounds = (max_divergence, damping, ridge)
        many = flat.size > len(equations.jacobian) + len(equations.scores)
        solve = _step_among_frames if many else _step_among_params
        change = unravel(jnp.asarray(solve(equations, *bounds), flat.dtype))
        limit = loss if descend else None
        params, scale, n_eff = _backtrack(
            problem, params, change, keep_fraction, max_halvings, limit
        )
        predictions = [one.prediction for one in linearised]
        return params, state, UpdateInfo(loss, predictions, scale, n_eff)

    return Update(lambda params: (), step)


class _Equations(NamedTuple):
    """What a step is found from; ``slope`` is ``jacobian.T @ pull``."""

    jacobian: Array  # [n_residuals, n_params], of residuals and penalty
    pull: Array  # [n_residuals], the residuals, cut where targets clip theirs
    scores: Array  # [n_frames, n_params], whose square is the metric


def _equations(
    problem: Problem, params: Params, linearised: list[Linearised]
) -> tuple[float, _Equations]:
    """Loss and linearised residuals of everything."""
    flat, unravel = ravel_pytree(params)
    loss, rows, pulls = 0.0, [], []
    for reweighting, one in zip(problem.reweightings, linearised, strict=True):
        for target in reweighting.targets:
            name = target.observable.name
            value = one.prediction.values[name]
            scale = jax.jacobian(target.deviations)(value).reshape(-1, value.size)
            rows.append(scale @ one.jacobian[name].reshape(value.size, flat.size))
            pulls.append(jnp.ravel(target.pull(value)))
            loss += float(target.loss(value))
    if problem.penalty is not None:
        penalty = problem.penalty
        residual = penalty(params)
        rows.append(jax.jacobian(lambda x: penalty(unravel(x)))(flat))
        pulls.append(residual)
        loss += 0.5 * float(residual @ residual)
    scores = jnp.concatenate([one.scores for one in linearised])
    return loss, _Equations(jnp.concatenate(rows), jnp.concatenate(pulls), scores)


def _step_among_params(equations: _Equations, *bounds: float) -> np.ndarray:
    """The step, with parameters scaled by curvature and metric together.

    Some have a penalty but no frame that depends on them, others frames alone, and those with
    neither do not move.
    """
    jacobian, pull, scores = (np.asarray(part, float) for part in equations)
    curvature, metric = jacobian.T @ jacobian, scores.T @ scores
    size = np.diag(curvature) + np.diag(metric)
    scale = np.sqrt(np.maximum(size, 1e-12 * max(size.max(), 1e-300)))
    return _trust_region_step(jacobian.T @ pull, curvature, metric, scale, *bounds)


def _step_among_frames(equations: _Equations, *bounds: float) -> np.ndarray:
    """The same where residuals and frames are fewer than parameters, as for networks.

    Neither residuals nor frames feel a step across all rows ``B`` of Jacobian and scores, so the
    step is ``B^T y``: it is found in the principal directions of ``B B^T``, and of all steps that
    do the same it is the shortest. All parameters have one scale, by the largest of these.
    """
    rows = jnp.concatenate([equations.jacobian, equations.scores])
    square = jnp.matmul(rows, rows.T, precision="highest")
    sizes, axes = np.linalg.eigh(np.asarray(square, float))
    kept = sizes > len(sizes) * jnp.finfo(rows.dtype).eps * sizes[-1]
    if not kept.any():
        return np.zeros(rows.shape[1])
    root, axes = np.sqrt(sizes[kept]), axes[:, kept]
    n = len(equations.jacobian)
    jacobian, scores = axes[:n] * root, axes[n:] * root
    slope = jacobian.T @ np.asarray(equations.pull, float)
    curvature, metric = jacobian.T @ jacobian, scores.T @ scores
    step = _trust_region_step(slope, curvature, metric, np.full(len(root), root[-1]), *bounds)
    return np.asarray(rows.T @ jnp.asarray(axes @ (step / root), rows.dtype))


def _trust_region_step(
    slope: np.ndarray,
    curvature: np.ndarray,
    metric: np.ndarray,
    scale: np.ndarray,
    max_divergence: float,
    damping: float,
    ridge: float,
) -> np.ndarray:
    """The step of the least damping that stays within the bound on the divergence.

    The divergence falls monotonically with the damping, so the damping is bracketed and
    bisected; ``ridge`` is relative to ``scale``, squared.
    """
    slope, by_scale = slope / scale, np.outer(scale, scale)
    metric, curvature = metric / by_scale, curvature / by_scale

    def step(mu: float) -> np.ndarray:
        matrix = curvature + mu * metric
        held = ridge * np.maximum(np.diag(matrix), 1.0)
        return -np.linalg.solve(matrix + np.diag(held), slope)

    def is_far(mu: float) -> bool:
        change = step(mu)
        return bool(change @ metric @ change > max_divergence)

    high = damping
    while is_far(high):
        high *= 4.0
    if high > damping:
        low = high / 4.0
        for _ in range(50):
            middle = np.sqrt(low * high)
            low, high = (middle, high) if is_far(middle) else (low, middle)
    return step(high) / scale


def _backtrack(
    problem: Problem,
    params: Params,
    change: Params,
    keep_fraction: float,
    max_halvings: int,
    limit: float | None = None,
) -> tuple[Params, float, np.ndarray]:
    """Parameters after the change, halved until enough frames count and the loss has its limit."""
    scale = 1.0
    for halving in range(max_halvings + 1):
        moved = jax.tree.map(lambda p, c, s=scale: (p + s * c).astype(p.dtype), params, change)
        n_eff = problem.n_eff(moved)
        counts = np.array([s.energies.shape[0] for s in problem.samples])
        enough = bool(np.all(n_eff >= keep_fraction * counts))
        if halving == max_halvings or (enough and (limit is None or problem.loss(moved) <= limit)):
            break
        scale *= 0.5
    return moved, scale, n_eff


def _half_square(penalty: Penalty) -> Callable[[Params], Array]:
    return lambda params: 0.5 * jnp.sum(penalty(params) ** 2)


def _check_fraction(fraction: float) -> None:
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"`keep_fraction` must lie in [0, 1), got {fraction}")
