"""`map` over independent work items: in local processes or on a dask cluster, cached.

Ensembles, molecules, learning-curve points, replicas: anything that takes minutes per item
and knows nothing of the others. Each result is a file named by what it is the result of,
so the same call again computes only what is missing, after a crash as after an addition::

    def relax(item):
        ...
        return {"energy": energy, "positions": positions}

    if __name__ == "__main__":
        results = cluster.map(relax, items, cache="relaxed", n_workers=4)
"""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pickle
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.files import atomic_write_bytes
from mosaicmd.kernel.metrics import progress
from mosaicmd.kernel.pytrees import decode, encode
from mosaicmd.kernel.tensors import pack, unpack

PathLike = str | os.PathLike[str]
Task = tuple[Callable[[Any], Any], Any, str, bool]  # arguments of `_work`
Outcome = tuple[int, str | None]  # index of a task, and what went wrong


class ItemError(RuntimeError):
    """Some items have no result; those of all others are in the cache.

    Attributes:
        failures: what went wrong, with its traceback, by index of the item.
        results: in order, ``None`` where an item failed.
    """

    def __init__(self, failures: Mapping[int, str], results: Sequence[Any]) -> None:
        self.failures, self.results = dict(failures), list(results)
        some = [
            f"item {index}: {text.strip().splitlines()[-1]}"
            for index, text in list(self.failures.items())[:3]
        ]
        more = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
        super().__init__(
            f"{len(self.failures)} of {len(self.results)} items failed: {'; '.join(some)}{more}. "
            "The others are in the cache: repeat the call to compute these again. "
            "`failures` has the tracebacks"
        )


def map(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    cache: PathLike,
    version: str = "",
    cluster: str | None = None,
    n_workers: int | None = None,
    retries: int = 2,
    quiet: bool = False,
) -> list[Any]:
    """``[function(item) for item in items]``, in parallel, each item computed once.

    A result is found again by the module and name of the function (of a
    ``functools.partial``, also its arguments), the version, the content of the item, and
    whether JAX computes in 64 bits. What a function does, and what files hold whose paths
    are in an item, is not looked at: change the version when it changes.

    A worker that is killed costs the item it was at, which runs again. Local processes are
    started afresh, one item at a time, and import the main module: guard its code by
    ``if __name__ == "__main__":``.

    Args:
        function: of one item; importable by its name. Returns arrays, numbers, text and
            ``None`` in ``dict``, ``list`` and ``tuple``; arrays come back as numpy's.
        items: arrays, numbers, text, paths and ``None`` in ``dict`` (with text keys),
            ``list``, ``tuple``, named tuples (such as a `System`) and dataclasses.
        cache: folder of the results, made if missing. Workers write into it, so those on
            other machines must see it under the same path.
        version: see above.
        cluster: address of a dask scheduler (``"tcp://host:8786"``); ``None``: processes
            on this machine.
        n_workers: number of local processes; by default one per processor.
        retries: how often an item runs again whose local process was killed. A dask
            cluster has its own limit, ``distributed.scheduler.allowed-failures``.
        quiet: show no progress.

    Returns:
        Results in the order of the items.

    Raises:
        ItemError: if items raised or their workers were killed too often, after all others
            are done.
        ValueError: for a function that cannot be imported by name, an item of another
            kind, or settings that do not fit.
        ImportError: if ``cluster`` is given without dask (extra ``cluster``).
    """
    if cluster is not None and n_workers is not None:
        raise ValueError("`n_workers` is for local processes; a cluster has its own workers")
    if retries < 0 or (n_workers is not None and n_workers < 1):
        raise ValueError(
            f"`n_workers` must be positive and `retries` not negative, got {n_workers!r} and "
            f"{retries!r}"
        )
    identity = _identity(function)
    folder = Path(cache).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    x64 = bool(jax.config.read("jax_enable_x64"))
    paths = [
        folder / f"{_digest([identity, version, x64, _canonical(item, f'item {index}')])}"
        for index, item in enumerate(items)
    ]
    paths = [path.with_suffix(".safetensors") for path in paths]
    results = {path: _load(path) for path in paths}
    tasks: dict[int, Task] = {}
    for index, (item, path) in enumerate(zip(items, paths, strict=True)):
        if results[path] is None and path not in {Path(task[2]) for task in tasks.values()}:
            tasks[index] = (function, item, str(path), x64)
    problems: dict[Path, str] = {}
    if tasks:
        if cluster is None:
            outcomes = _in_processes(tasks, n_workers or os.cpu_count() or 1, retries)
        else:
            outcomes = _on_cluster(tasks, cluster)
        name = identity[0].rsplit(".", 1)[-1]
        total = len(results)
        with progress(
            total, name, start=total - len(tasks), rate=(1.0, "items/s"), quiet=quiet
        ) as bar:
            for index, problem in outcomes:
                path = paths[index]
                results[path] = None if problem else _load(path)
                if results[path] is None:
                    problems[path] = problem or f"its worker left no file {path}: another disk?"
                bar.advance(1, f"{len(problems)} failed" if problems else None)
    ordered = [None if (found := results[path]) is None else found[0] for path in paths]
    if problems:
        failures = {i: problems[path] for i, path in enumerate(paths) if path in problems}
        raise ItemError(failures, ordered)
    return ordered


def _work(function: Callable[[Any], Any], item: Any, path: str, x64: bool) -> str | None:
    """Compute one item and store its result; the traceback if it raised."""
    try:
        jax.config.update("jax_enable_x64", x64)
        if Path(path).exists():  # by a worker that was killed just after
            return None
        structure, arrays = encode(function(item), "result", text=True)
        metadata = {"structure": json.dumps(structure)}
        atomic_write_bytes(path, pack(arrays, metadata))
    except Exception:
        return traceback.format_exc()
    return None


def _in_processes(tasks: Mapping[int, Task], n_workers: int, retries: int) -> Iterator[Outcome]:
    """Run tasks in processes of their own pools, as a death breaks a pool as a whole."""
    context = multiprocessing.get_context("spawn")
    waiting = collections.deque(tasks)
    deaths: collections.Counter[int] = collections.Counter()
    idle: list[concurrent.futures.ProcessPoolExecutor] = []
    running: dict[concurrent.futures.Future, tuple[int, Any]] = {}
    broken = concurrent.futures.process.BrokenProcessPool
    try:
        while waiting or running:
            while waiting and len(running) < n_workers:
                pool = idle.pop() if idle else None
                pool = pool or concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
                try:
                    future = pool.submit(_work, *tasks[waiting[0]])
                except broken:  # killed while it had nothing to do
                    pool.shutdown()
                    continue
                running[future] = (waiting.popleft(), pool)
            done, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
            for future in done:
                index, pool = running.pop(future)
                try:
                    problem = future.result()
                except broken:
                    pool.shutdown()
                    deaths[index] += 1
                    if deaths[index] <= retries:
                        waiting.append(index)
                        continue
                    problem = (
                        f"its process died {deaths[index]} times: out of memory, or a main "
                        'module without `if __name__ == "__main__":`'
                    )
                except Exception:  # of an item that cannot be sent
                    problem = traceback.format_exc()
                    idle.append(pool)
                else:
                    idle.append(pool)
                yield index, problem
    finally:
        for pool in [*idle, *(pool for _, pool in running.values())]:
            pool.shutdown(cancel_futures=True)


def _on_cluster(tasks: Mapping[int, Task], address: str) -> Iterator[Outcome]:
    """Run tasks on the workers of a dask scheduler."""
    try:
        import distributed
    except ImportError as error:
        raise ImportError(
            "`cluster` needs dask; install it by `pip install mosaicmd-kernel[cluster]`, or "
            "leave it out to use local processes"
        ) from error
    run = uuid.uuid4().hex
    with distributed.Client(address, set_as_default=False) as client:
        futures = {
            client.submit(_work, *task, key=f"mosaicmd-{run}-{index}", pure=False): index
            for index, task in tasks.items()
        }
        for future in distributed.as_completed(list(futures), loop=client.loop):
            if future.status == "finished":
                problem = future.result()
            else:
                problem = f"its worker was lost too often: {future.exception()!r}"
            yield futures[future], problem


def _load(path: Path) -> tuple[Any] | None:
    """A stored result, in a tuple as it may be ``None``; damaged files count as missing."""
    try:
        arrays, metadata = unpack(path.read_bytes())
        return (decode(json.loads(metadata["structure"]), arrays, text=True),)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError):
        path.unlink()
        return None


def _identity(function: Callable[[Any], Any]) -> list[Any]:
    """Name of a function, and the arguments that a partial binds.

    Raises:
        ValueError: if other processes could not import it.
    """
    if isinstance(function, functools.partial):
        bound = [list(function.args), function.keywords]
        return [*_identity(function.func), _canonical(bound, "the partial's arguments")]
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    try:
        pickle.dumps(function)
        importable = bool(module and name)
    except (pickle.PicklingError, AttributeError, TypeError):
        importable = False
    if not importable:
        raise ValueError(
            f"`function` {function!r} cannot be imported by name in another process; define it "
            "at the top of a module (no lambda, no inner function), and bind arguments by "
            "`functools.partial`"
        )
    if module == "__main__":
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").name
    return [f"{module}.{name}"]


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _canonical(node: Any, name: str) -> Any:
    """JSON that is equal for equal content, with checksums in place of arrays."""
    match node:
        case None | bool() | int() | str():
            return node
        case float():
            return {"float": node.hex()}
        case os.PathLike():
            return {"path": os.fspath(node)}
        case dict() if all(type(key) is str for key in node):
            return {"dict": {k: _canonical(v, f"{name}[{k!r}]") for k, v in node.items()}}
        case tuple() if fields := getattr(node, "_fields", None):
            values = zip(fields, node, strict=True)
            return {type(node).__name__: {k: _canonical(v, f"{name}.{k}") for k, v in values}}
        case list() | tuple():
            return {
                type(node).__name__: [_canonical(v, f"{name}[{i}]") for i, v in enumerate(node)]
            }
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        values = [(field.name, getattr(node, field.name)) for field in dataclasses.fields(node)]
        return {type(node).__name__: {k: _canonical(v, f"{name}.{k}") for k, v in values}}
    if isinstance(node, jax.Array) and jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(node))
        return {"key": [str(jax.random.key_impl(node)), data.tolist()]}
    if isinstance(node, np.ndarray | np.generic | jax.Array) and node.dtype.kind != "O":
        array = np.asarray(node)
        checksum = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return {"array": [str(array.dtype), list(array.shape), checksum]}
    raise ValueError(
        f"{name} is a {type(node).__name__}; items are arrays, numbers, text, paths and None in "
        "dict (with text keys), list, tuple, named tuple and dataclass"
    )
