"""Items on local processes and on a dask cluster of two: computed once, whatever dies."""

import collections
import functools
import importlib
import os
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel import cluster
from mosaicmd.kernel.cluster import ItemError
from mosaicmd.kernel.systems import make_system

WORK = """
    import os, pathlib, signal, uuid
    import jax.numpy as jnp
    import numpy as np


    def square(item, scale=1.0):
        folder = pathlib.Path(item["folder"])
        attempt = len(list(folder.glob(f"{item['index']}-*")))
        (folder / f"{item['index']}-{uuid.uuid4().hex}").touch()
        if item.get("kill") and attempt < item["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if item.get("raises") and not (folder / "mended").exists():
            raise ArithmeticError(f"no square of {item['index']}")
        value = scale * np.asarray(item["values"]) ** 2
        return {"square": value, "name": f"item {item['index']}", "bits": str(jnp.ones(()).dtype)}


    def identity(item):
        return item
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A module that worker processes can import."""
    name = f"work_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(WORK))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(name)
    sys.modules.pop(name)


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def counted(runs):
    """How often each item ran."""
    names = [path.name for path in runs.iterdir() if "-" in path.name]
    return dict(collections.Counter(int(name.split("-")[0]) for name in names))


def items(runs, n_items, **special):
    made = [{"index": i, "folder": str(runs), "values": np.arange(3.0) + i} for i in range(n_items)]
    for name, (index, value) in special.items():
        made[index][name] = value
    return made


def check(results):
    for index, result in enumerate(results):
        np.testing.assert_array_equal(result["square"], (np.arange(3.0) + index) ** 2)
        assert result["name"] == f"item {index}"
        assert result["bits"] == "float64"  # as here


def test_a_killed_process_costs_one_item_and_nothing_runs_twice(tmp_path, work, runs):
    """SIGKILL at the first attempt of item 2: it alone runs again; then all is cached."""
    mine = items(runs, 6, kill=(2, 1))
    check(cluster.map(work.square, mine, cache=tmp_path / "cache", n_workers=2, quiet=True))
    assert counted(runs) == {index: 2 if index == 2 else 1 for index in range(6)}
    check(cluster.map(work.square, mine, cache=tmp_path / "cache", quiet=True))
    assert sum(counted(runs).values()) == 7
    more = [*mine[::-1], mine[0]]  # cached by content, not by place
    again = cluster.map(work.square, more, cache=tmp_path / "cache", quiet=True)
    check([*again[-2::-1]])
    assert sum(counted(runs).values()) == 7
    damaged = next((tmp_path / "cache").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    check(cluster.map(work.square, mine, cache=tmp_path / "cache", quiet=True))
    assert sum(counted(runs).values()) == 8


def test_failures_are_reported_by_index_and_do_not_lose_the_others(tmp_path, work, runs):
    """One item raises, one kills every process it gets; a repeated call mends them alone."""
    mine = items(runs, 4, raises=(1, True), kill=(3, 2))
    with pytest.raises(ItemError, match="2 of 4 items failed: item") as caught:
        cluster.map(work.square, mine, cache=tmp_path / "cache", n_workers=2, retries=1, quiet=True)
    assert set(caught.value.failures) == {1, 3}
    assert "ArithmeticError: no square of 1" in caught.value.failures[1]
    assert "its process died 2 times" in caught.value.failures[3]
    assert [result is None for result in caught.value.results] == [False, True, False, True]
    assert counted(runs) == {0: 1, 1: 1, 2: 1, 3: 2}
    (runs / "mended").touch()
    check(cluster.map(work.square, mine, cache=tmp_path / "cache", n_workers=1, quiet=True))
    assert counted(runs) == {0: 1, 1: 2, 2: 1, 3: 3}


def test_a_dask_cluster_of_two_loses_one_item_to_a_kill(tmp_path, work, runs):
    distributed = pytest.importorskip("distributed")
    mine = items(runs, 6, kill=(2, 1))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as local:
        settings = {"cache": tmp_path / "cache", "cluster": local.scheduler_address, "quiet": True}
        check(cluster.map(work.square, mine, **settings))
        assert counted(runs) == {index: 2 if index == 2 else 1 for index in range(6)}
        more = [*mine, items(runs, 7, raises=(6, True))[6]]
        with pytest.raises(ItemError, match="1 of 7 items failed: item 6: ArithmeticError"):
            cluster.map(work.square, more, **settings)
    assert counted(runs) == {index: 2 if index == 2 else 1 for index in range(7)}


class Point(NamedTuple):
    x: float
    y: float


def test_keys_tell_contents_apart_and_are_stable(tmp_path, work):
    """Content, version, function and bound arguments; known values, as caches outlive us."""

    def key(item):
        return cluster._digest(cluster._canonical(item, "item"))

    system = make_system(np.eye(3), 18, masses=40.0)
    distinct = [
        *(None, 1, True, 1.0, "1", [1], (1,), {"a": 1}, {"a": 1, "b": None}, Path("1")),
        *(np.array([1, 2]), np.array([1, 2], np.int32), np.array([[1, 2]]), np.float32(1.0)),
        *(Point(1.0, 2.0), (1.0, 2.0), Point(2.0, 1.0)),
        *(system, system._replace(positions=system.positions + 1e-12)),
        *(jax.random.key(0), jax.random.key(1)),
    ]
    assert len({key(item) for item in distinct}) == len(distinct)
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert key(jnp.arange(3.0)) == key(np.arange(3.0)) == key(np.arange(6.0)[::2] / 2.0)
    assert key({"x": [1, 2.5, "three", None]}) == "072ce979c45982a166a15963bf6d08ae"
    assert cluster._identity(work.square) != cluster._identity(work.identity)
    halved = functools.partial(work.square, scale=0.5)
    assert cluster._identity(halved) != cluster._identity(work.square)
    assert cluster._identity(work.square)[0].endswith(".square")


def test_results_come_back_as_they_were(tmp_path, work, runs):
    """Nested containers, text, None, and NaN; arrays of any dtype bit for bit."""
    item = {
        "none": None,
        "list": [1, True, 2.5, "text", float("inf")],
        "tuple": (np.arange(3, dtype=np.int8), {"deep": np.array([np.nan, -0.0], np.float32)}),
    }
    path = tmp_path / "result"
    assert cluster._work(work.identity, item, str(path), True) is None
    (found,) = cluster._load(path)
    assert jax.tree.structure(found) == jax.tree.structure(item)
    assert found["list"] == item["list"]
    assert found["tuple"][0].dtype == np.int8
    assert found["tuple"][1]["deep"].tobytes() == item["tuple"][1]["deep"].tobytes()
    problem = cluster._work(set, [1], str(tmp_path / "other"), True)
    assert "result is a set" in problem
    halved, path = functools.partial(work.square, scale=0.5), tmp_path / "half"
    assert cluster._work(halved, items(runs, 1)[0], str(path), True) is None
    np.testing.assert_array_equal(cluster._load(path)[0]["square"], [0.0, 0.5, 2.0])
    assert cluster.map(work.identity, [], cache=tmp_path / "cache") == []


def test_bad_input_is_named(tmp_path, work):
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match="cannot be imported by name in another process"):
        cluster.map(lambda item: item, [1], cache=cache)
    with pytest.raises(ValueError, match=r"item 1\['a'\] is a set; items are arrays"):
        cluster.map(work.identity, [1, {"a": {2}}], cache=cache)
    with pytest.raises(ValueError, match="a cluster has its own workers"):
        cluster.map(work.identity, [1], cache=cache, cluster="tcp://x", n_workers=2)
    with pytest.raises(ValueError, match="`n_workers` must be positive"):
        cluster.map(work.identity, [1], cache=cache, n_workers=0)


def test_without_dask_a_cluster_is_an_error(tmp_path, work, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"install it by `pip install mosaicmd-kernel\[cluster\]"):
        cluster.map(work.identity, [1], cache=tmp_path, cluster="tcp://localhost:1", quiet=True)
    assert os.listdir(tmp_path)
