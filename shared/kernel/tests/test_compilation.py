"""Options for XLA."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mosaicmd.kernel.compilation import compiler_options, tune_compiler

PROGRAM = """
import jax, jax.numpy as jnp
from mosaicmd.kernel.compilation import tune_compiler
tune_compiler()
jax.jit(lambda x: x + 1)(jnp.ones(3))
"""


@pytest.fixture
def plugin_for_cuda(tmp_path, monkeypatch):
    """An empty package where JAX looks for its plugins; the folder that has it."""
    package = tmp_path / "site" / "jax_plugins" / "xla_cuda0"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


@pytest.fixture(autouse=True)
def an_earlier_jax(monkeypatch):
    """Which needs no options for CPUs; what later ones need has a test of its own."""
    monkeypatch.setattr("jax.__version_info__", (0, 10, 1))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "--xla_gpu_autotune_level=0"),
        ("--xla_dump_to=there", "--xla_dump_to=there --xla_gpu_autotune_level=0"),
        ("--xla_gpu_autotune_level=2", "--xla_gpu_autotune_level=2"),
    ],
)
def test_option_is_added_to_those_of_the_user(plugin_for_cuda, monkeypatch, before, after):
    monkeypatch.setenv("XLA_FLAGS", before)
    tune_compiler()
    tune_compiler()
    assert os.environ["XLA_FLAGS"] == after


def test_forces_have_their_products_from_a_library(plugin_for_cuda, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    tune_compiler(training=False)
    options = ["--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false"]
    assert os.environ["XLA_FLAGS"].split() == options


def test_programs_of_dynamics_have_them_on_gpus_alone(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert compiler_options(training=False) is None
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    assert compiler_options(training=False) == {"xla_gpu_enable_triton_gemm": False}
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=true")
    assert compiler_options(training=False) is None


def test_nothing_changes_without_cuda(monkeypatch):
    monkeypatch.setattr("pkgutil.iter_modules", lambda folders: iter(()))
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=there")
    tune_compiler()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=there"


def test_later_versions_of_jax_sum_without_a_library_on_cpus(monkeypatch):
    """And in what the option is called, XLA of all versions agrees: the program compiles."""
    sums = "xla_cpu_experimental_ynn_fusion_type"
    monkeypatch.setattr("pkgutil.iter_modules", lambda folders: iter(()))
    monkeypatch.setattr("jax.__version_info__", (0, 11, 2))
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=there")
    assert compiler_options() == compiler_options(training=False) == {sums: ""}
    values = jnp.ones((2000, 13, 16), "f4"), jnp.ones((2000, 16, 16), "f4")

    def sums_of_products(x, y):
        return jnp.sum(jnp.sin(jnp.sum(x[:, :, :, None] * y[:, None], axis=2)))

    def text(options):
        lowered = jax.jit(sums_of_products, compiler_options=options).lower(*values)
        return lowered.compile().as_text()

    assert "ynn" in text(None)
    assert "ynn" not in text(compiler_options())
    tune_compiler()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=there --{sums}="
    assert compiler_options() is None


def test_xla_reads_it_after_jax_was_imported(plugin_for_cuda, tmp_path, monkeypatch):
    """XLA says which options a program was compiled with."""
    monkeypatch.setenv("PYTHONPATH", str(plugin_for_cuda))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={tmp_path}")
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
    said = [path.read_text() for path in tmp_path.glob("*.debug_options")]
    assert said
    assert all("xla_gpu_autotune_level: 0" in text for text in said)
