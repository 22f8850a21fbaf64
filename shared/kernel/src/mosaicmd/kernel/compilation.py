"""Options of XLA that suit networks of atoms."""

from __future__ import annotations

import importlib.util
import os
import pkgutil

import jax

_SEARCH, _TRITON = "xla_gpu_autotune_level", "xla_gpu_enable_triton_gemm"
_SUMS = "xla_cpu_experimental_ynn_fusion_type"


def tune_compiler(*, training: bool = True) -> None:
    """Set options of XLA for this process, and those it starts, in ``XLA_FLAGS``.

    Call it before JAX computes anything. Options that are set there already stay. Where JAX has its
    plugin for CUDA:

    - XLA takes its first choice for each matrix product. By default it compiles and times dozens
      of forms of every product. A training step of an equivariant network has hundreds of products,
      and does not compile within five minutes; without the search it takes half a minute
      (``benchmarks/RESULTS.md``, networks on a GPU).
    - Without ``training`` products go to cuBLAS, see :func:`compiler_options`.

    From jax 0.11 on, XLA hands sums in programs for CPUs to a library, which makes networks up to
    2.7 times slower. It is told not to.

    Args:
        training: whether gradients of weights are wanted.
    """
    wanted = {_SUMS: ""} if _slow_sums() else {}
    if _cuda_is_installed():
        wanted |= {_SEARCH: "0"} if training else {_SEARCH: "0", _TRITON: "false"}
    if not wanted:
        return
    flags = os.environ.get("XLA_FLAGS", "").split()
    flags += [f"--{option}={value}" for option, value in wanted.items() if not _given(option)]
    os.environ["XLA_FLAGS"] = " ".join(flags)


def compiler_options(*, training: bool = True) -> dict[str, bool | str] | None:
    """``compiler_options`` of :func:`jax.jit`, unless ``XLA_FLAGS`` have them.

    On CPUs they are those of :func:`tune_compiler`. On GPUs products of programs that need forces
    alone, as dynamics do, come from cuBLAS, which is up to twice as fast; for gradients of weights,
    sums over all edges, it is slower than Triton by a factor of two to seven.

    Args:
        training: whether the program has gradients of weights.
    """
    backend = jax.default_backend()
    if backend == "cpu" and _slow_sums() and not _given(_SUMS):
        return {_SUMS: ""}
    if backend == "gpu" and not training and not _given(_TRITON):
        return {_TRITON: False}
    return None


def _given(option: str) -> bool:
    return f"--{option}=" in os.environ.get("XLA_FLAGS", "")


def _slow_sums() -> bool:
    return jax.__version_info__ >= (0, 11)


def _cuda_is_installed() -> bool:
    spec = importlib.util.find_spec("jax_plugins")
    folders = None if spec is None else spec.submodule_search_locations
    return any(one.name.startswith("xla_cuda") for one in pkgutil.iter_modules(folders or []))
