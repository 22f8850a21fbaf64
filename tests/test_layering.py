"""Imports follow the declared dependencies, and these point one way: apps, packages, kernel."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MEMBERS = {
    path.parent.name: path.parent
    for pattern in ("shared/*/pyproject.toml", "packages/*/pyproject.toml")
    for path in sorted(ROOT.glob(pattern))
}
SIBLINGS = {  # which packages may stand on which, beside the kernel
    ("qeq-longrange", "gnn-models"),
    ("resolv", "difftre"),
    ("transfer", "gnn-models"),
}
IMPORT_NAMES = {"pyyaml": "yaml"}  # where a distribution is not imported by its own name


class Project(NamedTuple):
    """What the code of one member or app may import."""

    required: set[str]
    optional: dict[str, set[str]]  # by extra


def import_name(requirement: str) -> str:
    name = re.sub(r"[-_.]+", "-", Requirement(requirement).name).lower()
    if name.startswith("mosaicmd-"):
        return "mosaicmd." + name.removeprefix("mosaicmd-").replace("-", "_")
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def project_of(member: Path) -> Project:
    project = tomllib.loads((member / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {})
    return Project(
        {import_name(project["name"]), *map(import_name, project["dependencies"])},
        {extra: set(map(import_name, names)) for extra, names in extras.items() if extra != "test"},
    )


def imports(node: ast.AST, eager: bool = True) -> Iterator[tuple[str, bool]]:
    """Every absolute import below `node`, and whether importing the module carries it out."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import(names):
                yield from ((alias.name, eager) for alias in names)
            case ast.ImportFrom(module="mosaicmd", names=names, level=0):
                yield from ((f"mosaicmd.{alias.name}", eager) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module, eager
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() | ast.Try():
                yield from imports(child, eager=False)
            case ast.If(test) if "TYPE_CHECKING" in ast.unparse(test):
                yield from imports(child, eager=False)
            case _:
                yield from imports(child, eager)


def violations(source: str, module: Path, project: Project) -> list[str]:
    """What is wrong with the imports of one module, in words."""
    found = []
    for name, eager in imports(ast.parse(source)):
        first, *rest = name.split(".")
        top = f"mosaicmd.{rest[0]}" if first == "mosaicmd" and rest else first
        if top in sys.stdlib_module_names or top in project.required:
            continue
        extras = [extra for extra, names in project.optional.items() if top in names]
        if not extras:
            found.append(f"{module} imports {top}, which its project does not declare")
        elif eager and not {*module.with_suffix("").parts}.intersection(extras):
            found.append(f"{module} imports {top} of the extra {extras[0]} before it is needed")
    return found


def violations_below(folder: Path, project: Project) -> list[str]:
    return [
        line
        for path in sorted(folder.rglob("*.py"))
        for line in violations(path.read_text(), path.relative_to(folder), project)
    ]


@pytest.mark.parametrize("member", MEMBERS)
def test_members_import_what_they_declare(member):
    assert violations_below(MEMBERS[member] / "src", project_of(MEMBERS[member])) == []


@pytest.mark.parametrize("folder", [*ROOT.glob("apps/*/"), ROOT / "benchmarks"], ids=str)
def test_apps_and_benchmarks_import_what_they_list(folder):
    files = [folder / "requirements.txt", *folder.glob("requirements-*.txt")]
    listed = [line for file in files for line in file.read_text().splitlines()]
    requirements = [Requirement(line) for line in listed if line and not line.startswith("#")]
    required = {path.stem for path in folder.rglob("*.py")}  # the modules beside it
    for requirement in requirements:
        required.add(import_name(str(requirement)))
        member = MEMBERS.get(requirement.name.removeprefix("mosaicmd-"))
        if member is not None:  # what ours declares need not be listed again
            declared = project_of(member)
            required |= declared.required.union(
                *(declared.optional[extra] for extra in requirement.extras)
            )
    assert violations_below(folder, Project(required, {})) == []


@pytest.mark.parametrize("member", MEMBERS)
def test_dependencies_point_one_way(member):
    required = project_of(MEMBERS[member]).required - {import_name(f"mosaicmd-{member}")}
    ours = {
        name.removeprefix("mosaicmd.").replace("_", "-")
        for name in required
        if name.startswith("mosaicmd.")
    }
    if member == "kernel":
        assert ours == set()
    else:
        assert "kernel" in ours
        assert {(member, sibling) for sibling in ours - {"kernel"}} <= SIBLINGS


@pytest.mark.parametrize("member", MEMBERS)
def test_no_member_owns_the_namespace(member):
    source = MEMBERS[member] / "src"
    assert [path.name for path in source.iterdir()] == ["mosaicmd"]
    packages = [p.name for p in (source / "mosaicmd").iterdir() if p.name != "__pycache__"]
    assert packages == [member.replace("-", "_")]


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("import jax.numpy\nfrom mosaicmd.kernel.units import kT\nfrom . import near", None),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mdtraj", None),
        ("def read():\n    import mdtraj", None),
        ("try:\n    import mdtraj\nexcept ImportError:\n    mdtraj = None", None),
        ("import mdtraj", "mdtraj of the extra io before it is needed"),
        ("class A:\n    import mdtraj", "mdtraj of the extra io before it is needed"),
        ("import torch", "torch, which its project does not declare"),
        ("def f():\n    import torch", "torch, which its project does not declare"),
        ("from mosaicmd.difftre import adam", "mosaicmd.difftre, which its project"),
        ("from mosaicmd import difftre", "mosaicmd.difftre, which its project"),
        ("import apps.water.app", "apps, which its project does not declare"),
    ],
)
def test_the_check_sees(source, verdict):
    project = Project({"jax", "mosaicmd.kernel"}, {"io": {"mdtraj"}})
    found = violations(source, Path("module.py"), project)
    assert found == [] if verdict is None else len(found) == 1 and verdict in found[0]
    assert violations("import mdtraj", Path("io.py"), project) == []
