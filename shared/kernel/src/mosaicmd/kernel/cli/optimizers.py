"""Optimisers and schedules by their names, and frozen parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from mosaicmd.kernel.cli.training_config import OptimizerConfig, ScheduleConfig
from mosaicmd.kernel.config import ConfigError, suggest
from mosaicmd.kernel.muon import muon
from mosaicmd.kernel.pytrees import matching_leaves

Params = Any

OPTIMIZERS = (
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "amsgrad",
    "fromage",
    "lamb",
    "lars",
    "lbfgs",
    "lion",
    "muon",
    "nadam",
    "nadamw",
    "novograd",
    "radam",
    "rmsprop",
    "sgd",
    "yogi",
)
SCHEDULES = (
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "exponential_decay",
    "linear_onecycle_schedule",
    "linear_schedule",
    "piecewise_constant_schedule",
    "polynomial_schedule",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
)


def build_optimizer(
    config: OptimizerConfig,
    n_steps: int,
    params: Params,
    *,
    max_gradient_norm: float | None = None,
    freeze: Sequence[str] = (),
) -> optax.GradientTransformation:
    """The optimiser of a configuration.

    Args:
        config: names and options.
        n_steps: of the training, which schedules last.
        params: whose paths ``freeze`` matches.
        max_gradient_norm: gradients of the parameters that move are scaled down to this.
        freeze: patterns of paths such as ``"layers/0/*"``, in which ``*`` matches anything.

    Raises:
        ConfigError: for unknown names and options, and patterns that match nothing.
    """
    if config.name not in OPTIMIZERS:
        raise ConfigError(
            f"optimizer.name: {config.name!r} is unknown{suggest(config.name, OPTIMIZERS)}; "
            f"known: {', '.join(OPTIMIZERS)}"
        )
    options: dict[str, Any] = {}
    if config.name == "lbfgs":
        if freeze or max_gradient_norm is not None or config.schedule != ScheduleConfig():
            raise ConfigError(
                "optimizer.name: lbfgs searches along its own directions, so `freeze`, "
                "`max_gradient_norm` and a `schedule` do not go with it; leave them out, or use "
                "adam"
            )
    else:
        options["learning_rate"] = build_schedule(config.schedule, config.learning_rate, n_steps)
    function = muon if config.name == "muon" else getattr(optax, config.name)
    optimizer = _called("optimizer.options", function, config.options, options)
    if max_gradient_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(max_gradient_norm), optimizer)
    if not freeze:
        return optimizer
    frozen = frozen_leaves(params, freeze)
    labels = jax.tree.map(lambda held: "held" if held else "free", frozen)
    return optax.multi_transform({"free": optimizer, "held": optax.set_to_zero()}, labels)


def build_schedule(config: ScheduleConfig, learning_rate: float, n_steps: int) -> optax.Schedule:
    """The schedule of a configuration.

    Raises:
        ConfigError: for unknown names and options, and options that are missing.
    """
    by_name = {name.removesuffix("_schedule"): name for name in SCHEDULES}
    name = config.name.removesuffix("_schedule")
    if name not in by_name:
        raise ConfigError(
            f"optimizer.schedule.name: {config.name!r} is unknown{suggest(name, by_name)}; known: "
            f"{', '.join(by_name)}"
        )
    function = getattr(optax, by_name[name])
    accepted = inspect.signature(function).parameters
    start = 0.0 if "peak_value" in accepted else learning_rate
    defaults = {
        "value": learning_rate,
        "init_value": start,
        "peak_value": learning_rate,
        "decay_steps": n_steps,
        "transition_steps": n_steps,
    }
    defaults = {key: value for key, value in defaults.items() if key in accepted}
    return _called("optimizer.schedule.options", function, config.options, defaults)


def frozen_leaves(params: Params, patterns: Sequence[str]) -> Params:
    """Whether the path of each leaf, or of a container that it is in, matches a pattern.

    Raises:
        ConfigError: for a pattern that matches nothing, or patterns that match everything.
    """
    try:
        flags = matching_leaves(params, patterns)
    except ValueError as error:
        raise ConfigError(f"freeze: {error}") from error
    if all(jax.tree.leaves(flags)):
        raise ConfigError(f"freeze: {list(patterns)} match every parameter; leave some to train")
    return flags


def _called(
    where: str, function: Callable[..., Any], options: Mapping[str, Any], defaults: dict[str, Any]
) -> Any:
    accepted = inspect.signature(function).parameters
    if unknown := [name for name in options if name not in accepted]:
        raise ConfigError(
            f"{where}: {function.__name__} has no option {unknown[0]!r}"
            f"{suggest(unknown[0], accepted)}; its options are {', '.join(accepted)}"
        )
    if where == "optimizer.options" and "learning_rate" in options:
        raise ConfigError("optimizer.options: give `learning_rate` beside `name`, not in `options`")
    given = defaults | dict(options)
    missing = [
        name
        for name, parameter in accepted.items()
        if parameter.default is inspect.Parameter.empty and name not in given
    ]
    if missing:
        raise ConfigError(f"{where}: {function.__name__} needs {', '.join(missing)}")
    try:
        return function(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: {function.__name__} refuses {dict(options)}: {error}"
        ) from error
