"""Settings of passes, of what graphs may call, and of native artifacts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import ByteSize, Field, field_validator

from lazyfx_server.settings.name_lists import Names
from lazyfx_server.settings.part import GIB, Part


def _usable_cores() -> int:
    return max(1, min(8, os.cpu_count() or 1))


class PassSettings(Part):
    """The available passes, and what graphs may call."""

    group = "passes and targets"

    pass_plugins: Names = []
    """Entry points of the group lazyfx.passes to load, by name. A plugin is code that runs in the
    server and its workers; only the plugins named here are loaded."""

    pipelines: str = ""
    """Additional named pipelines: NAME=PASSES; NAME=PASSES, e.g.
    tidy=dead_code_elimination,constant_fold. A TOML file may contain a table of them. Built in:
    default, inference and training."""

    operator_modules: Names = []
    """Python modules that register custom operators; imported in the workers that run passes."""

    allow_targets: Path | None = None
    """JSON file of additional functions and Tensor methods that graphs may call, by exact name and
    signature; docs/deploy.md has an example. The modules that it names are imported."""

    @field_validator("pipelines", mode="before")
    @classmethod
    def _table_is_text(cls, value: object) -> object:
        if isinstance(value, dict):
            return "; ".join(f"{name}={spelling}" for name, spelling in value.items())
        return value

    @field_validator("pipelines")
    @classmethod
    def _names_pipelines(cls, value: str) -> str:
        for entry in filter(None, map(str.strip, value.split(";"))):
            name, equals, passes = entry.partition("=")
            if not (name.strip().isidentifier() and equals and passes.strip()):
                raise ValueError(
                    f"must be NAME=PASSES; NAME=PASSES, but {entry!r} is not NAME=PASSES"
                )
        return value

    @property
    def named_pipelines(self) -> dict[str, str]:
        """The spellings of pipelines by name."""
        entries = (entry.partition("=") for entry in self.pipelines.split(";") if entry.strip())
        return {name.strip(): spelling.strip() for name, _, spelling in entries}


class NativeSettings(Part):
    """Native artifacts, and the processes that build them."""

    group = "native artifacts"

    native: Literal["off", "on", "optional"] = "off"
    """Compile native artifacts with Inductor for torch.compile(backend="lazyfx"). on (or --native
    alone) requires a C++ compiler and every sandbox layer, and refuses to start without them;
    optional starts without native artifacts instead."""

    native_workers: int = Field(default=1, ge=1, le=64)
    """Native compiles to run in parallel, each in its own process, which exits afterwards."""

    native_unconfined: bool = False
    """Run native compiles without a complete sandbox, if the kernel lacks a layer or a GPU driver
    needs more than the sandbox allows. A caller whose graph gets past the checks then has the
    rights of this server's user: use it only if you trust every caller."""

    native_start_method: Literal["auto", "forkserver", "spawn"] = "auto"
    """Start method of native workers, as in multiprocessing. "forkserver" starts at once and
    cannot use GPUs; "spawn" takes seconds and can. "auto" selects "spawn" on machines with
    GPUs."""

    native_compile_threads: int = Field(default_factory=_usable_cores, ge=1, le=256)
    """C++ compilers that may run in parallel, for all native compiles together; they take turns.
    Default: the number of cores, at most 8."""

    kernel_sharing: Literal["all", "tenant"] = "all"
    """Who shares compiled C++ kernels: all tenants, or only the jobs of one. A kernel has no name
    and no text of its graph, but a caller sees that somebody has compiled it before; see
    SECURITY.md."""

    native_timeout: float = Field(default=1800.0, gt=0)
    """Seconds after which a native compile is killed."""

    native_memory_bytes: ByteSize = ByteSize(32 * GIB)
    """Address space that a native compile process may allocate beyond what it starts with."""

    native_cpu_seconds: float = Field(default=7200.0, gt=0)
    """CPU seconds after which a native compile process is killed."""

    @property
    def shares_kernels(self) -> bool:
        """Whether what is compiled for one job is used for others."""
        return not self.native_unconfined

    @field_validator("native", mode="before")
    @classmethod
    def _switch_is_word(cls, value: object) -> object:
        """It used to be a switch, and still works without a value."""
        word = str(value).strip().lower()
        if word in ("1", "true", "yes", "t", "y", ""):
            return "on" if word else "off"
        return "off" if word in ("0", "false", "no", "f", "n") else value
