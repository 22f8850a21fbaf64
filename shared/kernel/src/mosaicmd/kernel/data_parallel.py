"""Several devices, and several processes: batches are divided, parameters are everywhere.

On one machine with several devices::

    mesh = batch_mesh()
    batches = Batches(examples, batch_size=64, mesh=mesh)
    algorithm = force_matching(energy_fn, loss, optimizer, mesh=mesh)
    state = train(algorithm, params, n_steps, batches=prefetch(batches))

On several machines every process runs this same program with the same data and seed, after
:func:`join_processes`, and each gives ``train`` a directory of its own: their states and
metrics are the same, so each resumes from its own checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

AXIS = "batch"
"""Name of the axis of a mesh along which batches are divided."""


def batch_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices of all processes, or of those given."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def join_processes(
    coordinator: str | None = None, n_processes: int | None = None, process: int | None = None
) -> None:
    """Connect this process with the others of a run; call it before any other use of JAX.

    Under Slurm, Open MPI and on cloud TPUs leave all arguments out: JAX finds out by itself
    (``jax.distributed.initialize``). CPUs are connected through Gloo.

    Args:
        coordinator: ``"address:port"`` of the process 0.
        n_processes: how many there are.
        process: which this is.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, n_processes, process)


def sum_over_devices(function: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """``function(params, batch)``, a tree of sums, with the batch divided among the devices.

    Args:
        function: of parameters and of a batch with any number of slots.
        mesh: from :func:`batch_mesh`; ``None`` leaves the function as it is.
    """
    if mesh is None:
        return function

    def local(params: Any, batch: Any) -> Any:
        return jax.lax.psum(function(params, batch), AXIS)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """The tree with a copy of every array on each device of the mesh."""
    if mesh is None:
        return tree
    everywhere = jax.sharding.NamedSharding(mesh, PartitionSpec())

    return jax.device_put(tree, everywhere)
