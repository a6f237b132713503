"""The README's Python runs as it is printed, statement by statement, against a real server."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import RunningServer

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Reached with a token and a certificate that do not exist here.
_ELSEWHERE = "compile.example"


def blocks() -> list[str]:
    found = _BLOCK.findall(README.read_text())
    assert sum(_ELSEWHERE in block for block in found) == 1
    return [block for block in found if _ELSEWHERE not in block]


def test_it_runs_as_printed(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAZYFX_ADDRESS", server.address)
    names: dict[str, Any] = {"__name__": "__main__"}
    checked = 0
    for block in blocks():
        for statement in ast.parse(block).body:
            text = ast.get_source_segment(block, statement)
            assert text is not None
            try:
                value = run(statement, names)
            except Exception as error:  # noqa: BLE001 - any would be the reader's
                pytest.fail(f"{text}\n{type(error).__name__}: {error}")
            said = block.splitlines()[(statement.end_lineno or 0) - 1].partition("#")[2].strip()
            if re.fullmatch(r"requested=\d+, performed=\d+", said):
                assert said in repr(value)
                checked += 1
            elif said.startswith('"miss" the first time'):
                assert value == "miss"
                checked += 1
    assert checked == 2
    expected = names["program"].module()(*names["args"])
    assert torch.equal(names["module"](*names["args"]), expected)
    assert names["module"].report.recompiles.performed >= 1
    read_back(names, expected)


def run(statement: ast.stmt, names: dict[str, Any]) -> Any:
    if isinstance(statement, ast.Expr):
        return eval(compile(ast.Expression(statement.value), "README.md", "eval"), names)
    return exec(compile(ast.Module([statement], []), "README.md", "exec"), names)


def read_back(names: dict[str, Any], expected: torch.Tensor) -> None:
    """Each file is read by the call in its comment."""
    (block, *_) = blocks()
    lines = [line for line in block.splitlines() if line.startswith("module.save_")]
    read = {
        "save_pickle": "import pickle",
        "save_package": "from torch.package import PackageImporter",
        "save_code": "import sys; sys.path.insert(0, '.')",
    }
    for line in lines:
        saved, _, comment = line.partition("  # ")
        kind = saved.removeprefix("module.").partition("(")[0]
        exec(read.get(kind, "pass"), names)
        how = comment.removeprefix("needs only torch: ").replace("PackageImporter(...)",
                                                            'PackageImporter("module.pt")')  # fmt: skip
        if kind == "save_code":
            how, _, call = how.partition("; ")
            exec(how, names)
            assert torch.equal(eval(call, names), expected)
        else:
            assert torch.equal(eval(how, names)(*names["args"]), expected), line
    assert len(lines) == 5
