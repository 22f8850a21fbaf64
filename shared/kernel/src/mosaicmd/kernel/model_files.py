"""Models on disk: a directory with ``model.json`` and ``weights.safetensors``.

``model.json`` says what the model is (architecture, its configuration, species, cutoff,
units), what made it (package versions, training) and which weights belong to it (their
SHA-256 and structure). Loading runs no code that the files name: an architecture is looked
up among those installed or handed in, and weights are plain arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import ValidationError

from mosaicmd.kernel.config import Config
from mosaicmd.kernel.files import atomic_write_directory, to_json
from mosaicmd.kernel.potentials import Potential, build_potential
from mosaicmd.kernel.pytrees import decode, encode, named_leaves, to_jax
from mosaicmd.kernel.tensors import pack, unpack

Params = Any

_MODEL, _WEIGHTS = "model.json", "weights.safetensors"
_LARGEST_MODEL_JSON = 64 * 2**20  # bytes
_UNITS = {"energy": "eV", "length": "angstrom", "mass": "u", "charge": "e"}


class ModelFileError(ValueError):
    """A model directory that cannot be read, or that does not describe one whole model."""


class _WeightsRecord(Config):
    sha256: str
    structure: Any


class _Record(Config):
    """The fields of ``model.json``."""

    format: Literal["mosaicmd-model"] = "mosaicmd-model"
    format_version: Literal[1] = 1
    architecture: str
    config: dict[str, Any]
    species: list[int] | None
    cutoff: float  # Å
    units: dict[str, str]
    packages: dict[str, str]
    training: dict[str, Any] | None
    weights: _WeightsRecord


def save_model(
    directory: str | os.PathLike[str],
    potential: Potential,
    params: Params,
    *,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model that :func:`load_model` rebuilds bit for bit.

    Args:
        directory: where; it is created, or replaced as a whole if ``overwrite``.
        potential: its architecture and configuration are stored.
        params: weights, as nested ``dict``, ``list`` and ``tuple`` of arrays and numbers,
            with the structure and the shapes that ``potential.init`` gives.
        training: what it was trained on and how; any JSON.
        overwrite: replace an existing model.

    Returns:
        The directory, made with those above it.

    Raises:
        ValueError: if the parameters do not belong to the potential, or something cannot
            be stored.
        FileExistsError: if the directory exists and is not to be replaced.
        DiskFullError: if there is no room; an existing model stays as it was.
    """
    directory = Path(directory)
    if problem := _misfit(potential, params):
        raise ValueError(f"`params` do not belong to this {potential.architecture!r}: {problem}")
    structure, arrays = encode(params)
    weights = pack(arrays)
    record = _Record(
        architecture=potential.architecture,
        config=_json("config", dict(potential.config)),
        species=None if potential.species is None else list(map(int, potential.species)),
        cutoff=float(potential.cutoff),
        units=_UNITS,
        packages=_package_versions(),
        training=None if training is None else _json("training", dict(training)),
        weights=_WeightsRecord(sha256=hashlib.sha256(weights).hexdigest(), structure=structure),
    )
    model = to_json(record.model_dump(), _MODEL) + "\n"
    directory.parent.mkdir(parents=True, exist_ok=True)
    return atomic_write_directory(
        directory, {_MODEL: model.encode(), _WEIGHTS: weights}, overwrite=overwrite
    )


def load_model(
    directory: str | os.PathLike[str],
    *,
    architectures: Mapping[str, Callable[[Mapping[str, Any]], Potential]] | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> tuple[Potential, Params]:
    """The potential and the weights of a model directory.

    Args:
        directory: as written by :func:`save_model`.
        architectures: factories by name, looked up before the installed ones.
        dtype: cast floating-point weights to this; by default they keep their bits.

    Raises:
        ModelFileError: if anything is missing, damaged, from a later version, or does not
            belong together; nothing that the files name has been executed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        previous = directory.with_name(f".{directory.name}.previous")
        hint = f"; a complete earlier one is {previous}, rename it" if previous.is_dir() else ""
        raise ModelFileError(f"model {directory} does not exist or is no directory{hint}")
    try:
        return _load(directory, architectures, dtype)
    except ModelFileError as error:
        raise ModelFileError(f"model {directory}: {error}") from error.__cause__


def read_model_record(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``model.json`` says, checked, without the weights.

    Raises:
        ModelFileError: as :func:`load_model`.
    """
    return _read_record(Path(directory)).model_dump()


def _load(
    directory: Path,
    architectures: Mapping[str, Callable[[Mapping[str, Any]], Potential]] | None,
    dtype: jax.typing.DTypeLike | None,
) -> tuple[Potential, Params]:
    record = _read_record(directory)
    data = _read(directory, _WEIGHTS)
    if hashlib.sha256(data).hexdigest() != record.weights.sha256:
        raise ModelFileError(
            f"{_WEIGHTS} ({len(data)} bytes) is damaged or belongs to another {_MODEL}: its "
            "SHA-256 is not the recorded one; copy both files again from where they were made"
        )
    try:
        arrays, _ = unpack(data)
        params = decode(
            record.weights.structure, arrays, lambda array, weak: _to_jax(array, weak, dtype)
        )
    except ModelFileError:
        raise
    except ValueError as error:
        raise ModelFileError(f"{_WEIGHTS}: {error}") from error
    try:
        potential = build_potential(record.architecture, record.config, architectures=architectures)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ModelFileError(
            f"architecture {record.architecture!r} cannot be built from its configuration: {error}"
        ) from error
    except ImportError as error:
        raise ModelFileError(
            f"architecture {record.architecture!r} needs a package that is missing: {error}"
        ) from error
    species = None if record.species is None else tuple(record.species)
    for name, recorded, built in (
        ("cutoff", record.cutoff, potential.cutoff),
        ("species", species, potential.species),
    ):
        if recorded != built:
            raise ModelFileError(
                f"{_MODEL} records {name} {recorded}, but its configuration gives {built} with "
                f"the installed packages; it was written with {record.packages}"
            )
    if problem := _misfit(potential, params):
        raise ModelFileError(f"the weights do not fit {record.architecture!r}: {problem}")
    return potential, params


def _read_record(directory: Path) -> _Record:
    text = _read(directory, _MODEL, limit=_LARGEST_MODEL_JSON)
    try:
        content = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{_MODEL} is no valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != "mosaicmd-model":
        raise ModelFileError(f'{_MODEL} is not a model: it does not say "format": "mosaicmd-model"')
    version = content.get("format_version")
    if isinstance(version, int) and version > 1:
        raise ModelFileError(
            f"{_MODEL} has format version {version} and this package reads up to 1; "
            "upgrade mosaicmd-kernel"
        )
    try:
        record = _Record.model_validate(content, strict=True)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, detail['loc'])) or _MODEL}: {detail['msg']}"
            for detail in error.errors()
        ]
        raise ModelFileError(f"{_MODEL} is incomplete or altered: {'; '.join(problems)}") from error
    if record.units != _UNITS:
        raise ModelFileError(f"{_MODEL} is in units {record.units}, expected {_UNITS}")
    return record


def _read(directory: Path, name: str, limit: float = math.inf) -> bytes:
    path = directory / name
    try:
        if not path.resolve().is_relative_to(directory.resolve()):
            raise ModelFileError(f"{name} is a link that leads out of the directory; copy the file")
        if not path.is_file():
            state = "no ordinary file" if path.exists() else "missing"
            raise ModelFileError(f"{name} is {state}; copy the whole directory again")
        if path.stat().st_size > limit:
            raise ModelFileError(f"{name} has {path.stat().st_size} bytes, which is no model")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ModelFileError(f"{name} cannot be read: {error}") from error


def _misfit(potential: Potential, params: Params) -> str | None:
    """How parameters differ in structure or shapes from those that ``init`` gives."""
    expected = jax.eval_shape(potential.init, jax.random.key(0))
    shapes = [{name: np.shape(leaf) for name, leaf in named_leaves(t)} for t in (expected, params)]
    for name in shapes[0] | shapes[1]:
        of_potential, of_params = (shape.get(name, "absent") for shape in shapes)
        if of_potential != of_params:
            return f"`{name}` has shape {of_params}, expected {of_potential}"
    structures = jax.tree.structure(expected), jax.tree.structure(params)
    if structures[0] != structures[1]:
        return f"their structure is {structures[1]}, expected {structures[0]}"
    return None


def _to_jax(array: np.ndarray, weak: bool, dtype: jax.typing.DTypeLike | None) -> jax.Array:
    if dtype is not None:
        return jnp.asarray(array, dtype if jnp.issubdtype(array.dtype, jnp.floating) else None)
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ModelFileError(
            f"its weights are {array.dtype} but JAX is in 32-bit mode; enable `jax_enable_x64`, "
            "or give dtype='float32' to round them"
        )
    return to_jax(array, weak)


def _json(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(to_json(value, f"`{name}`"))


def _package_versions() -> dict[str, str]:
    found = {
        distribution.name: distribution.version
        for distribution in distributions()
        if (distribution.name or "").startswith(("mosaicmd-", "jax", "numpy"))
    }
    return dict(sorted(found.items()))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key stands twice")
    return mapping


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is too large")
    return value
