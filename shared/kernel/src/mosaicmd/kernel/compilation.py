"""How long XLA compiles for GPUs."""

from __future__ import annotations

import importlib.util
import os
import pkgutil

_OPTION = "xla_gpu_autotune_level"


def compile_without_search() -> None:
    """Let XLA take its first choice for each matrix product on a GPU, instead of timing many.

    By default XLA compiles and times dozens of forms of every product. A training step of an
    equivariant network has hundreds of products, and does not compile within five minutes; without
    the search it takes half a minute (``benchmarks/RESULTS.md``, networks on a GPU).

    Call it before JAX computes anything. Where JAX has its plugin for CUDA it changes the
    environment variable ``XLA_FLAGS``, for this process and those it starts; if that sets
    ``--xla_gpu_autotune_level`` already, what is set stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _OPTION not in flags and _cuda_is_installed():
        os.environ["XLA_FLAGS"] = f"{flags} --{_OPTION}=0".strip()


def _cuda_is_installed() -> bool:
    spec = importlib.util.find_spec("jax_plugins")
    folders = None if spec is None else spec.submodule_search_locations
    return any(one.name.startswith("xla_cuda") for one in pkgutil.iter_modules(folders or []))
