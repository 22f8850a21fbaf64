"""How long XLA compiles for GPUs."""

from __future__ import annotations

import importlib.util
import os
import pkgutil

import jax

_SEARCH, _TRITON = "xla_gpu_autotune_level", "xla_gpu_enable_triton_gemm"


def compile_without_search(*, training: bool = True) -> None:
    """Let XLA take its first choice for each matrix product on a GPU, instead of timing many.

    By default XLA compiles and times dozens of forms of every product. A training step of an
    equivariant network has hundreds of products, and does not compile within five minutes; without
    the search it takes half a minute (``benchmarks/RESULTS.md``, networks on a GPU).

    Call it before JAX computes anything. Where JAX has its plugin for CUDA it changes the
    environment variable ``XLA_FLAGS``, for this process and those it starts; options that are set
    there already stay.

    Args:
        training: whether gradients of weights are wanted. Without, products go to cuBLAS, which
            is up to twice as fast for forces; for gradients, sums over all edges, it is slower
            than Triton by a factor of two to seven.
    """
    if not _cuda_is_installed():
        return
    flags = os.environ.get("XLA_FLAGS", "").split()
    wanted = {_SEARCH: "0"} if training else {_SEARCH: "0", _TRITON: "false"}
    for option, value in wanted.items():
        if not any(flag.startswith(f"--{option}=") for flag in flags):
            flags.append(f"--{option}={value}")
    os.environ["XLA_FLAGS"] = " ".join(flags)


def options_for_forces() -> dict[str, bool] | None:
    """``compiler_options`` of :func:`jax.jit` for programs that need forces alone, as dynamics do.

    On a GPU their products then come from cuBLAS, unless ``XLA_FLAGS`` say where from.
    """
    given = f"--{_TRITON}=" in os.environ.get("XLA_FLAGS", "")
    return {_TRITON: False} if jax.default_backend() == "gpu" and not given else None


def _cuda_is_installed() -> bool:
    spec = importlib.util.find_spec("jax_plugins")
    folders = None if spec is None else spec.submodule_search_locations
    return any(one.name.startswith("xla_cuda") for one in pkgutil.iter_modules(folders or []))
