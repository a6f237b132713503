"""Everything of torch's Inductor that has no public name, imported here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
from torch._dynamo.exc import RestartAnalysis, TensorifyScalarRestartAnalysis
from torch._dynamo.symbolic_convert import TensorifyState
from torch._inductor import list_mode_options
from torch._inductor.codecache import CppCodeCache, torch_key
from torch._inductor.cpu_vec_isa import pick_vec_isa, supported_vec_isa_list, x86_isa_checker
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.standalone_compile import AOTCompiledArtifact
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.symbol import SymT, symbol_is_type

__all__ = [
    "AOTCompiledArtifact",
    "CppCodeCache",
    "RestartAnalysis",
    "SymT",
    "TensorifyScalarRestartAnalysis",
    "TensorifyState",
    "backed_values",
    "cache_dir",
    "default_setting",
    "functorch_config",
    "inductor_config",
    "is_setting",
    "mode_settings",
    "pick_vec_isa",
    "portable_configuration",
    "supported_vec_isa_list",
    "symbol_is_type",
    "torch_key",
    "x86_isa_checker",
]


def mode_settings(mode: str) -> Mapping[str, Any]:
    """The Inductor settings that a mode of torch.compile stands for.

    Raises:
        RuntimeError: torch has no such mode.
    """
    return list_mode_options(mode)


def portable_configuration() -> dict[str, Any]:
    """Every setting of Inductor and AOTAutograd that torch itself puts into its cache keys."""
    found = {f"inductor.{k}": v for k, v in inductor_config.save_config_portable().items()}
    found.update({f"aot.{k}": v for k, v in functorch_config.save_config_portable().items()})
    return found


def is_setting(name: str) -> bool:
    """Whether Inductor has a setting of this name."""
    return name in getattr(inductor_config, "_config")  # noqa: B009 - made at run time


def default_setting(name: str) -> Any:
    """The default of a setting of Inductor, as it is without environment and patches."""
    return getattr(inductor_config, "_config")[name].default  # noqa: B009 - made at run time


def backed_values(env: ShapeEnv) -> Mapping[sympy.Symbol, Any]:
    """What symbols stand for in the call that is traced; torch 2.13 has renamed it."""
    name = "backed_var_to_val" if hasattr(env, "backed_var_to_val") else "var_to_val"
    known: Mapping[sympy.Symbol, Any] = getattr(env, name)
    return known
