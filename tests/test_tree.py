"""The source tree: small folders, unambiguous names, and shared modules that both sides use."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from itertools import chain
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = {"lazyfx": ROOT / "client/lazyfx", "lazyfx_server": ROOT / "server/lazyfx_server"}
MAX_MODULES = 16
# Of these several mean the same, each for its package.
SAME_MEANING = {"__main__", "errors", "compiler_pb2", "graph_pb2", "worker_pb2"}
PUBLIC_TO_THE_SERVER = {"shared", "errors", "v1", "__init__"}


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in whole}
    return found & known.keys()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_holds_more_modules_than_a_reader_takes_in(package: str) -> None:
    folders = defaultdict(list)
    for path in PACKAGES[package].rglob("*.py"):
        if path.name != "__init__.py":
            folders[path.parent.relative_to(ROOT)].append(path.stem)
    full = {
        str(folder): len(names) for folder, names in folders.items() if len(names) > MAX_MODULES
    }
    assert not full


def test_no_two_modules_of_one_name_mean_different_things() -> None:
    named = defaultdict(list)
    for module, path in modules().items():
        if path.name != "__init__.py":
            named[path.stem].append(module)
    twice = {
        name: where for name, where in named.items() if len(where) > 1 and name not in SAME_MEANING
    }
    assert not twice


def test_the_linter_forbids_the_server_everything_of_the_client_that_is_not_shared() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    (contract,) = (
        each
        for each in contracts["contracts"]
        if each["name"] == "The server imports only the shared part of the client"
    )
    children = {path.stem for path in PACKAGES["lazyfx"].iterdir() if _is_module(path)}
    assert set(contract["forbidden_modules"]) == {
        f"lazyfx.{child}" for child in children - PUBLIC_TO_THE_SERVER
    }


def test_what_is_called_shared_is_used_by_the_server() -> None:
    known = modules()
    reached, rest = set(), [name for name in known if name.startswith("lazyfx_server")]
    while rest:
        name = rest.pop()
        if name not in reached:
            reached.add(name)
            parents = {name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)}
            rest += (imported(known[name], known) | parents) & known.keys() - {"lazyfx"}
    unused = {name for name in known if name.startswith("lazyfx.shared")} - reached
    assert not unused


def test_the_table_of_changes_names_few_files_and_they_are_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    table = text.partition("## Where to change what")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    roots = [ROOT, *PACKAGES.values(), ROOT / "client", ROOT / "server"]
    roots += [ROOT / "proto/lazyfx/v1", ROOT / "proto/lazyfx_server/v1"]
    for row in rows:
        named = [re.findall(r"`([\w./-]+(?:/|\.(?:py|proto|md|toml)|/\w+))`", cell) for cell in row]
        for name in chain(*named):
            assert any((root / name).exists() for root in roots), name
        assert len([name for name in named[1] if not name.endswith(".proto")]) <= 3, row[0]


def _is_module(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").exists()


def test_every_test_that_is_not_slow_is_run_by_the_target_that_ci_runs() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    target = r"^(test[\w-]*): .*\n(?:\t.*\n)*?\t.*?-m ('.*|\$\(if.*)"
    chosen = dict(re.findall(target, makefile, re.MULTILINE))
    assert chosen == {
        "test": "$(if $(LONG),'not slow','not slow and not long'))",
        "test-long": "'long and not slow' $(ARGS)",
    }
    assert "make test LONG=1" in (ROOT / ".ci/run").read_text("utf-8").splitlines()
