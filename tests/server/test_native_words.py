"""What torch compares an argument with, and what graphs may look up, reaches native compiles."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest
import torch

from lazyfx.shared.wire.targets.target_lists import LOOKUPS
from lazyfx_server.jobs.native.words import is_word


def choices(module: ModuleType) -> set[str]:
    """String defaults of a module's functions, and strings that their arguments are compared with."""
    found: set[str] = set()
    for function in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(function, ast.FunctionDef):
            continue
        given = function.args
        names = {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
        values: list[ast.expr | None] = [*given.defaults, *given.kw_defaults]
        for node in ast.walk(function):
            if isinstance(node, ast.Compare) and getattr(node.left, "id", "") in names:
                values += [e for c in node.comparators for e in (c, *getattr(c, "elts", ()))]
        found |= {
            each.value
            for each in values
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
        }
    return found


@pytest.mark.parametrize("module", [torch.functional, torch.nn.functional])
def test_choices_of_functions_are_words(module: ModuleType) -> None:
    found = choices(module)
    assert len(found) > 5
    assert [each for each in sorted(found) if not is_word(each)] == []


def test_what_the_source_does_not_compare_with_is_a_word_too() -> None:
    modes = ("use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist", "reflection")
    assert all(map(is_word, modes))
    assert not is_word("use_mm_for_anything")


def test_names_that_graphs_may_look_up_are_words() -> None:
    names = {name for *_, allowed in LOOKUPS.values() for name in allowed}
    assert {"is_nested", "FLASH_ATTENTION"} <= names
    assert [name for name in sorted(names) if not is_word(name)] == []
