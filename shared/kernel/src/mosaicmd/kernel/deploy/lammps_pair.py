"""What ``pair_style mosaicmd`` of LAMMPS calls: exported programs on owned and ghost atoms.

``lammps_pair.cpp`` is the other side. Arrays are padded, so that a program is compiled when
a processor first needs more room than it has, and not per step.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers

from mosaicmd.kernel.compilation import compiler_options
from mosaicmd.kernel.deploy.exported import ExportedModel, ExportError, load_exported
from mosaicmd.kernel.systems import bucket_size

Array = jax.Array

_MESSAGE = 4096  # bytes for an error, as in lammps_pair.cpp
_HEADROOM = 1.05  # of new room, against another compilation soon


class LocalModel:
    """Energies and forces of the atoms of one processor.

    Attributes:
        cutoff: of the edges, Å.
        hops: how many edges away a ghost may be and matter.
    """

    def __init__(self, path: str | os.PathLike[str], elements: str) -> None:
        """Load an exported model for the elements, ``"Si Ge"``.

        Raises:
            ExportError: if the file cannot be read, or the model has no finite reach.
            ValueError: for elements that it does not know.
        """
        if os.path.isdir(path):
            raise ExportError(
                f"{path} is a directory; `mosaicmd export {path}` makes a file of a model"
            )
        with jax.enable_x64(True):
            model = load_exported(path)
        if model.hops is None:
            raise ExportError(
                f"an energy of {path} depends on atoms at any distance, which ghost atoms "
                "cannot bring; run it by `ase_calculator`"
            )
        self.cutoff, self.hops = model.cutoff, max(model.hops, 1)
        self._index = np.array([_index(model, name) for name in elements.split()], np.int32)
        self._dtype = np.dtype(model.info["dtype"])
        options = compiler_options(training=False)
        self._evaluate = jax.jit(_local(model.program), compiler_options=options)
        self._programs: dict[tuple[int, int], Callable[..., Any]] = {}
        self._room = (0, 0)

    @property
    def n_programs(self) -> int:
        """How many sizes were compiled so far."""
        return len(self._programs)

    def __call__(
        self,
        positions: np.ndarray,
        elements: np.ndarray,
        senders: np.ndarray,
        receivers: np.ndarray,
        n_own: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Energies and forces, eV and eV/Å; only the first ``n_own`` energies are counted.

        Args:
            positions: ``[n_atoms, 3]``, Å, ghosts last.
            elements: ``[n_atoms]``, places in the elements given to the constructor.
            senders: ``[n_edges]``.
            receivers: ``[n_edges]``, ascending.
            n_own: how many atoms are no ghosts.

        Raises:
            FloatingPointError: if an energy or a force is not finite.
        """
        n_atoms, n_edges = len(positions), len(senders)
        self._room = room = _room(self._room[0], n_atoms), _room(self._room[1], n_edges)
        with jax.enable_x64(self._dtype == np.float64):
            arguments = (
                _padded(positions.astype(self._dtype), room[0], 0.0),
                _padded(self._index[elements], room[0], 0),
                _padded(senders, room[1], room[0] - 1),
                _padded(receivers, room[1], room[0] - 1),
                np.array([n_atoms, n_own, n_edges], np.int32),
            )
            if room not in self._programs:
                self._programs[room] = self._evaluate.lower(*arguments).compile()
            energies, forces = jax.device_get(self._programs[room](*arguments))
        if not (np.isfinite(energies).all() and np.isfinite(forces).all()):
            raise FloatingPointError(
                "energies or forces are not finite; atoms may be where the model was not "
                "trained: try a shorter timestep, or minimise first"
            )
        return energies[:n_atoms], forces[:n_atoms]


def connect(address: int) -> None:
    """Write where the table of functions is to the address of a pointer of ``lammps_pair.cpp``."""
    ctypes.c_void_p.from_address(address).value = ctypes.addressof(_table)


def _local(program: Callable[..., Any]) -> Callable[..., tuple[Array, Array]]:
    """The program without cell and strain, which XLA then leaves out."""

    def evaluate(
        positions: Array, elements: Array, senders: Array, receivers: Array, sizes: Array
    ) -> tuple[Array, Array]:
        atom, edge = jnp.arange(len(positions)), jnp.arange(len(senders))
        energies, forces, _ = program(
            positions,
            jnp.zeros((3, 3), positions.dtype),
            elements,
            senders,
            receivers,
            jnp.zeros((len(senders), 3), jnp.int32),
            atom < sizes[0],
            atom < sizes[1],
            edge < sizes[2],
        )
        return energies, forces

    return evaluate


def _index(model: ExportedModel, name: str) -> int:
    """Where an element, or a label that is a number, stands in the species of the model."""
    label = int(name) if name.isdecimal() else atomic_numbers.get(name)
    if label not in model.species:
        raise ValueError(f"element {name!r} is unknown to the model, made for {model.species}")
    return model.species.index(label)


def _room(room: int, needed: int) -> int:
    """The room there is, if it suffices and is not more than twice what is needed."""
    return room if needed <= room <= 2 * needed else bucket_size(int(_HEADROOM * needed))


def _padded(values: np.ndarray, n: int, fill: float) -> np.ndarray:
    padded = np.full((n, *values.shape[1:]), fill, values.dtype)
    padded[: len(values)] = values
    return padded


_models: dict[int, LocalModel] = {}
_numbers = itertools.count()
_Doubles, _Ints = ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_int)
_Message = ctypes.POINTER(ctypes.c_char)
_Create = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, _Doubles, _Ints, _Message
)
_Compute = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *[ctypes.c_int] * 4,
    _Doubles,
    *[_Ints] * 3,
    *[_Doubles] * 2,
    _Message,
)
_Destroy = ctypes.CFUNCTYPE(None, ctypes.c_int)


class _Functions(ctypes.Structure):
    _fields_ = (("create", _Create), ("compute", _Compute), ("destroy", _Destroy))


def _create(path: bytes, elements: bytes, cutoff: Any, hops: Any, message: Any) -> int:
    try:
        model = LocalModel(os.fsdecode(path), elements.decode())
        cutoff[0], hops[0] = model.cutoff, model.hops
        number = next(_numbers)
        _models[number] = model
        return number
    except BaseException as error:  # nothing may be raised into C
        return _failed(error, message)


def _compute(
    number: int,
    n_atoms: int,
    n_own: int,
    n_edges: int,
    positions: Any,
    elements: Any,
    senders: Any,
    receivers: Any,
    energies: Any,
    forces: Any,
    message: Any,
) -> int:
    try:
        model, array = _models[number], np.ctypeslib.as_array
        shape = (n_atoms, 3)
        if n_edges == 0:  # as_array refuses the null pointer of an empty vector
            edges = np.zeros(0, np.int32), np.zeros(0, np.int32)
        else:
            edges = array(senders, (n_edges,)), array(receivers, (n_edges,))
        found = model(array(positions, shape), array(elements, (n_atoms,)), *edges, n_own)
        array(energies, (n_atoms,))[:], array(forces, shape)[:] = found
        return model.n_programs
    except BaseException as error:  # nothing may be raised into C
        return _failed(error, message)


def _destroy(number: int) -> None:
    _models.pop(number, None)


def _failed(error: BaseException, message: Any) -> int:
    text = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    ctypes.memmove(message, (data := text.encode()[: _MESSAGE - 1]) + b"\0", len(data) + 1)
    return -1


def _end() -> None:
    """Models may be destroyed by LAMMPS after Python has ended, which must not be called then."""
    _table.destroy = _Destroy()


_table = _Functions(_Create(_create), _Compute(_compute), _Destroy(_destroy))
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_table))  # it outlives this module
atexit.register(_end)
