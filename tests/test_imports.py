"""Imports run one way: fedspk <- gan <- clients, aggregator, server <- simulations."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_ROLES = ("clients", "aggregator", "server")
_ALLOWED = {
    "fedspk": {"fedspk"},
    "gan": {"fedspk", "gan"},
    **{role: {"fedspk", "gan", role} for role in _ROLES},
    "simulations": {"fedspk", "gan", *_ROLES, "simulations"},
}
_FLOWER_FREE = ("fedspk", "gan")
_MODULES = [
    path.relative_to(_ROOT)
    for package in _ALLOWED
    for path in sorted((_ROOT / package).rglob("*.py"))
]


def _imports(path: Path) -> set[str]:
    """Return the top-level names that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse((_ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(path.parts[0] if node.level else str(node.module).partition(".")[0])
    return names


@pytest.mark.parametrize("path", _MODULES, ids=str)
def test_a_module_imports_only_what_stands_below_it(path):
    package = path.parts[0]
    ours = _imports(path) & set(_ALLOWED)
    assert ours <= _ALLOWED[package]


@pytest.mark.parametrize("path", [p for p in _MODULES if p.parts[0] in _FLOWER_FREE], ids=str)
def test_the_core_knows_no_flower_and_no_ray(path):
    assert not _imports(path) & {"flwr", "ray", "fastapi", "starlette"}


def test_no_module_imports_an_entry_point_by_name_across_roles():
    for path in _MODULES:
        package = path.parts[0]
        if package in _ROLES:
            others = {f"{role}." for role in _ROLES if role != package}
            text = (_ROOT / path).read_text(encoding="utf-8")
            assert not any(f'import_module("{other}' in text for other in others), path


@pytest.mark.parametrize("module", ["clients/client_app.py", "aggregator/server_app.py"])
def test_flower_apps_import_nothing_heavy_at_module_level(module):
    tree = ast.parse((_ROOT / module).read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    light = {"errors", "rounds", "run_folder"}
    flower = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}
    standard = {"__future__", "collections.abc", "functools", "pathlib", "typing"}
    assert names <= standard | flower | {f"fedspk.{name}" for name in light}


@pytest.mark.parametrize("use", ["clients.recogniser", "fedspk.cli; fedspk.cli.build_app()"])
def test_a_device_answers_without_pytorch_scipy_or_pydantic(use):
    heavy = "torch", "scipy", "pydantic", "flwr", "librosa"
    code = f"import sys, {use}; print(*set({heavy!r}) & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, check=True)
    assert not found.stdout.split()


@pytest.mark.parametrize("use", ["fedspk.proposals", "server.operations, server.upkeep"])
def test_versions_are_listed_and_signed_without_pytorch(use):
    code = f"import sys, {use}; print(*{{'torch', 'scipy', 'flwr'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, check=True)
    assert not found.stdout.split()
