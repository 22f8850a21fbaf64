"""Settings that check themselves, and the one error that says all that is wrong with them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from mosaicmd.kernel._suggest import suggest
from mosaicmd.kernel.quantities import (
    Angle,
    Charge,
    Density,
    Energy,
    Force,
    Length,
    Mass,
    Pressure,
    Rate,
    Temperature,
    Time,
    quantity,
)

__all__ = [
    "Angle",
    "Charge",
    "Config",
    "ConfigError",
    "Density",
    "Energy",
    "Force",
    "Length",
    "Mass",
    "Pressure",
    "Rate",
    "Temperature",
    "Time",
    "load_config",
    "quantity",
    "suggest",
]


class Config(BaseModel):
    """Frozen settings: unknown keys, NaN and infinity are refused, defaults are checked too.

    ``config.model_dump(mode="json")`` is plain JSON from which the same settings load.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class ConfigError(ValueError):
    """Settings that cannot be used; the message lists every problem with its remedy."""


C = TypeVar("C", bound=BaseModel)


def load_config(
    config_class: type[C],
    source: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> C:
    """Settings from a YAML or JSON file, or from a mapping.

    Args:
        config_class: what to build.
        source: path of a ``.yaml``, ``.yml`` or ``.json`` file, or a mapping; ``None`` for
            the defaults.
        overrides: values that replace those of ``source``; keys may be nested mappings or
            dotted paths such as ``"dynamics.timestep_fs"``.

    Raises:
        ConfigError: naming each field that is wrong, its value and the remedy.
    """
    if source is None or isinstance(source, Mapping):
        origin, settings = config_class.__name__, dict(source or {})
    else:
        origin, settings = str(source), _read_mapping(Path(source))
    for key, value in (overrides or {}).items():
        settings = _override(settings, str(key).split("."), value, str(key))
    try:
        return config_class.model_validate(settings)
    except ValidationError as error:
        problems = [_describe(config_class, detail) for detail in error.errors()]
    count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise ConfigError(f"settings of {origin} have {count}:\n  " + "\n  ".join(problems))


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key may stand only once per mapping, and ``1e-3`` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.YAMLError(
                    f"key {key.value!r} stands twice (line {key.start_mark.line + 1})"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} stands twice")
    return mapping


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        neighbors = path.parent.glob("*.*") if path.parent.is_dir() else ()
        near = suggest(path.name, [entry.name for entry in neighbors])
        raise ConfigError(f"settings file {path} does not exist{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path} cannot be read: {error}") from error
    try:
        if path.suffix == ".json":
            settings = json.loads(text, object_pairs_hook=_unique)
        else:
            settings = yaml.load(text, Loader=_UniqueKeyLoader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise ConfigError(f"settings file {path} is not valid {kind}: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(
            f"settings file {path} holds a {type(settings).__name__}, not `name: value` pairs"
        )
    return settings


def _override(settings: dict[str, Any], path: Sequence[str], value: Any, full: str) -> dict:
    """A copy of ``settings`` with ``value`` merged in at ``path``."""
    name, *rest = path
    old = settings.get(name)
    if rest or isinstance(value, Mapping):
        if old is not None and not isinstance(old, Mapping):
            raise ConfigError(f"override `{full}`: `{name}` is {old!r}, which has no fields")
        inner = dict(old or {})
        if rest:
            inner = _override(inner, rest, value, full)
        else:
            for key, entry in value.items():
                inner = _override(inner, [str(key)], entry, f"{full}.{key}")
        value = inner
    return {**settings, name: value}


def _describe(config_class: type[BaseModel], detail: ErrorDetails) -> str:
    location = detail["loc"]
    parts = [str(part) for part in location if "[" not in str(part)]  # without union tags
    field = ".".join(parts) or config_class.__name__
    if detail["type"] == "extra_forbidden":
        names = _names_at(config_class, location[:-1])
        near = suggest(location[-1], names)
        return f"{field}: unknown key{near}; the keys here are {', '.join(sorted(names))}"
    if detail["type"] == "missing":
        return f"{field}: is required; add it"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    value = repr(detail["input"])
    value = value if len(value) <= 80 else value[:77] + "..."
    return f"{field}: got {value}: {message[:1].lower()}{message[1:]}"


def _names_at(config_class: type[BaseModel], location: Sequence[int | str]) -> set[str]:
    """Names of the fields that are allowed at a location inside nested settings."""
    classes = [config_class]
    for part in location:
        inner = [
            model
            for cls in classes
            if part in cls.model_fields
            for model in _models_in(cls.model_fields[str(part)].annotation)
        ]
        classes = inner or classes  # list indices and union tags lead no deeper
    return {name for cls in classes for name in cls.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
