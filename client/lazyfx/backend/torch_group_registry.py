"""Private names of torch's registry of process groups that the backend uses; imported only here."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["find_group", "register_group"]


def find_group(name: str) -> Any:
    """The process group with this name; None if there is none."""
    try:
        return torch._C._distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]  # noqa: SLF001
    except RuntimeError:
        return None


def register_group(name: str, group: Any) -> None:
    """Give a group another name, in place of a group that has it; it is not kept alive."""
    registry = torch._C._distributed_c10d  # noqa: SLF001
    registry._unregister_process_group(name)  # type: ignore[arg-type]  # noqa: SLF001
    registry._register_process_group(name, group)  # type: ignore[arg-type]  # noqa: SLF001
