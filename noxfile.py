"""The sessions of this repository; `nox --list` names them, `nox` runs what CI runs.

`nox -s "tests(difftre)"` tests one member, `nox -P 3.12 ...` uses another Python, and what stands
after `--` goes to the command of the session. Every session finds our own packages in the tree.
"""

import os
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.envdir = f".nox/{sys.version_info.major}.{sys.version_info.minor}"
nox.options.download_python = "never"  # a Python that is not there is skipped, and named
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests", "integration"]

PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
for folder in sorted(PYENV.glob("versions/3.1[1-9].*/bin")):  # where pyenv keeps other Pythons
    os.environ["PATH"] += os.pathsep + str(folder)

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "mosaicmd" / "jax"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else XLA lists CPU features per cached program
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

MEMBERS = {
    path.parent.name: path.parent
    for path in [Path("shared/kernel/pyproject.toml"), *sorted(Path().glob("packages/*/*.toml"))]
}
NO_TESTS_COLLECTED = 5
SIDE_BY_SIDE = ("--numprocesses=2", "--dist=loadfile")  # files, by pytest-xdist


def from_tree(*requirements: str) -> list[str]:
    """Install arguments for `requirements`, with ours and the siblings they need from the tree."""
    extras: dict[str, set[str]] = {}
    others = []

    def add(requirement: Requirement) -> None:
        member = requirement.name.removeprefix("mosaicmd-")
        known = extras.setdefault(member, set())
        project = tomllib.loads((MEMBERS[member] / "pyproject.toml").read_text())["project"]
        needed = list(project["dependencies"])
        for extra in requirement.extras - known:
            known.add(extra)
            needed += project["optional-dependencies"][extra]
        for sibling in map(Requirement, needed):
            if sibling.name.startswith("mosaicmd-"):
                add(sibling)

    for text in requirements:
        if text.startswith("mosaicmd-"):
            add(Requirement(text))
        else:
            others.append(text)
    for member, names in extras.items():
        others += ["-e", str(MEMBERS[member]) + (f"[{','.join(sorted(names))}]" if names else "")]
    return others


def listed(path: Path) -> list[str]:
    """The requirements in a file, one a line."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


EVERY_MEMBER = [f"mosaicmd-{member}[test]" for member in MEMBERS]
EVERY_REQUIREMENT = EVERY_MEMBER + [
    line
    for pattern in ("apps/*/requirements.txt", "benchmarks/requirements.txt")
    for path in sorted(Path().glob(pattern))
    for line in listed(path)
]


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and style."""
    session.install("ruff==0.17.6")
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.install("nox", "pyright[nodejs]==1.1.414", *from_tree(*EVERY_REQUIREMENT))
    session.run("pyright", *session.posargs)


for name in MEMBERS:

    @nox.session(name=f"tests({name})")
    def member_tests(session: nox.Session, member: str = name) -> None:
        """Test one member beside nothing but what it declares."""
        session.install("pytest-xdist", *from_tree(f"mosaicmd-{member}[test]"))
        session.run("pytest", str(MEMBERS[member] / "tests"), *SIDE_BY_SIDE, *session.posargs)

    @nox.session(name=f"tests_floor({name})", venv_backend="uv")
    def member_floor_tests(session: nox.Session, member: str = name) -> None:
        """Test one member with the lowest versions that it declares."""
        lowest = ("--resolution", "lowest-direct")
        session.install(*lowest, *from_tree(f"mosaicmd-{member}[test]"))
        session.run("pytest", str(MEMBERS[member] / "tests"), *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Test every member, each in its own environment."""
    version = f"-{session.python}" if session.python else ""
    for member in MEMBERS:
        session.notify(f"tests({member}){version}")


@nox.session
def integration(session: nox.Session) -> None:
    """Test what only the whole can show."""
    session.install("pytest-xdist", *from_tree(*EVERY_REQUIREMENT))
    session.run("pytest", "tests", *SIDE_BY_SIDE, *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run every test marked slow."""
    session.install(*from_tree(*EVERY_REQUIREMENT), *listed(Path("benchmarks/peers.txt")))
    session.run("pytest", "-m", "slow", *session.posargs, success_codes=[0, NO_TESTS_COLLECTED])


@nox.session
def app(session: nox.Session) -> None:
    """Run an app: NAME [TASK] [--preset quick|full] [--out DIR] ...; a missing task is `run`."""
    names = sorted(path.parent.name for path in Path("apps").glob("*/app.py"))
    match session.posargs:
        case [name, *arguments] if name in names:
            pass
        case _:
            session.error(f"name an app: nox -s app -- {'|'.join(names)} [TASK] [OPTIONS]")
    if not arguments or arguments[0].startswith("-"):
        arguments.insert(0, "run")
    folder = Path("apps") / name
    session.install(*from_tree(*listed(folder / "requirements.txt")))
    session.run("python", str(folder / "app.py"), *arguments)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks named after `--`, or all of them."""
    names = session.posargs or sorted(path.stem for path in Path("benchmarks").glob("[!_]*.py"))
    needed = listed(Path("benchmarks/requirements.txt")) + listed(Path("benchmarks/peers.txt"))
    session.install(*from_tree(*needed))
    for name in names:
        session.run("python", f"benchmarks/{name}.py")


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every wheel and sdist into dist/, then use the wheels alone, outside the tree."""
    session.install("build", "hatchling")
    smoke = Path("tests/smoke.py").resolve()
    dist = Path("dist").resolve()
    shutil.rmtree(dist, ignore_errors=True)
    for path in MEMBERS.values():
        build = ["python", "-m", "build", "--no-isolation", "--outdir", str(dist), str(path)]
        session.run(*build, silent=True)
    built = [str(path) for path in dist.glob("*.whl")]
    with tempfile.TemporaryDirectory() as clean, session.chdir(clean):
        session.run("python", "-m", "venv", "env")
        python = str(Path(clean, "env", "Scripts" if os.name == "nt" else "bin", "python"))
        if session.venv_backend == "uv":
            session.run("uv", "pip", "install", "--quiet", "--python", python, *built)
        else:
            session.run(python, "-m", "pip", "install", "--quiet", *built, external=True)
        session.run(python, "-I", str(smoke), *MEMBERS, external=True)
