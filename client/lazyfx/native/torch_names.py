"""Everything of torch's Inductor that has no public name, imported here and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

import sympy
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
from torch._dynamo.exc import RestartAnalysis, TensorifyScalarRestartAnalysis
from torch._dynamo.symbolic_convert import TensorifyState
from torch._inductor import list_mode_options
from torch._inductor.codecache import CppCodeCache, torch_key
from torch._inductor.cpu_vec_isa import pick_vec_isa, supported_vec_isa_list, x86_isa_checker
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.standalone_compile import AOTCompiledArtifact
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.symbol import SymT, symbol_is_type

__all__ = [
    "AOTCompiledArtifact",
    "CompiledFxGraph",
    "CppCodeCache",
    "RestartAnalysis",
    "SymT",
    "TensorifyScalarRestartAnalysis",
    "TensorifyState",
    "backed_values",
    "cache_dir",
    "current_setting",
    "default_setting",
    "functorch_config",
    "has_setting",
    "inductor_config",
    "mode_settings",
    "modes",
    "pick_vec_isa",
    "portable_configuration",
    "setting_type",
    "supported_vec_isa_list",
    "symbol_is_type",
    "torch_key",
    "x86_isa_checker",
]

_FUNCTORCH: Final = "functorch."


def modes() -> tuple[str, ...]:
    """The modes of torch.compile."""
    return tuple(list_mode_options())


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


def has_setting(name: str) -> bool:
    """Whether this torch has a setting.

    Args:
        name: Of Inductor, or "functorch." and a name of torch._functorch.config.
    """
    config, own = _place(name)
    return own in getattr(config, "_config")  # noqa: B009 - made at run time


def current_setting(name: str) -> Any:
    """The value of a setting in this process, patches and environment included."""
    config, own = _place(name)
    return functools.reduce(getattr, own.split("."), config)


def default_setting(name: str) -> Any:
    """The default of a setting, as it is without patches."""
    config, own = _place(name)
    return getattr(config, "_config")[own].default  # noqa: B009 - made at run time


def setting_type(name: str) -> Any:
    """The type that torch gives a setting."""
    config, own = _place(name)
    return config.get_type(own)


def _place(name: str) -> tuple[Any, str]:
    if name.startswith(_FUNCTORCH):
        return functorch_config, name.removeprefix(_FUNCTORCH)
    return inductor_config, name


def backed_values(env: ShapeEnv) -> Mapping[sympy.Symbol, Any]:
    """What symbols stand for in the call that is traced; torch 2.13 has renamed it."""
    name = "backed_var_to_val" if hasattr(env, "backed_var_to_val") else "var_to_val"
    known: Mapping[sympy.Symbol, Any] = getattr(env, name)
    return known
