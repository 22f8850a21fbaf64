"""Where a run stands, what makes it this run, and how it goes on from its directory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mosaicmd.kernel._run_directory import RunDirectory, fingerprint
from mosaicmd.kernel.integrators import MDState
from mosaicmd.kernel.neighbors import NeighborList, Neighbors
from mosaicmd.kernel.potentials import Params

Frames = dict[str, Any]  # numpy arrays with a leading frame axis


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("md", "neighbors", "step"),
    meta_fields=("plan",),
)
@dataclasses.dataclass(frozen=True)
class RunState:
    """Where a run stands; with replicas, arrays of ``md`` and ``neighbors`` lead with them."""

    md: MDState
    neighbors: Neighbors
    step: int  # steps done since `start`
    plan: NeighborList  # what `neighbors` is built by


def identity(params: Params, state: RunState, like: Frames) -> dict[str, Any]:
    """What tells this run from another one with the same settings, for its directory."""
    found = ("forces", "energy", "stress")
    start = {k: v for k, v in state.md._asdict().items() if k not in found}
    energy = np.asarray(state.md.energy, float)
    quantities = like["quantities"] | {n: like[n] for n in like if n != "quantities"}
    return {
        "frames": jax.tree.map(lambda leaf: f"{leaf.dtype}{[*leaf.shape[1:]]}", quantities),
        "start": {
            "step": state.step,
            "energy": energy.tolist() if np.isfinite(energy).all() else "not finite",
            "state": fingerprint(start),
        },
        "params": fingerprint(params),
    }


def resumed(
    files: RunDirectory, state: RunState, end: int, every: int, like: Frames
) -> tuple[RunState, list[Frames]]:
    """State and frames where the run in a directory stopped, or those given.

    Args:
        files: the directory.
        state: where the run starts.
        end: step to which it is to go.
        every: steps between frames.
        like: shapes and dtypes of frames.

    Raises:
        ValueError: if the directory is past ``end`` or lacks frames.
    """

    def state_like(metadata: Mapping[str, Any]) -> RunState:
        stored: Mapping[str, Any] = metadata["plan"]
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in stored.items()
        }
        plan = NeighborList(**fields)
        return RunState(state.md, jax.eval_shape(plan.build, state.md.system), 0, plan)

    start = state.step
    restored = files.restore(state_like)
    state = state if restored is None else restored
    if state.step > end:
        raise ValueError(
            f"{files.path} is at step {state.step} already, {state.step - start} steps from "
            f"its start, but `n_steps` is {end - start}; ask for at least as many"
        )
    frames = files.load_frames(state.step, like)
    steps = np.concatenate([np.zeros(0, int), *(piece["step"] for piece in frames)])
    if not np.array_equal(steps, np.arange(start + every, state.step + 1, every)):
        raise ValueError(
            f"{files.path} lacks frames before step {state.step}; delete it to start anew"
        )
    return state, frames
