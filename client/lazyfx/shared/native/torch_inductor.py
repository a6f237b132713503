"""All private names of torch's Inductor that both sides use; imported only here.

Imported lazily: it imports dynamo, which takes seconds, and a server whose workers compile does not
use it itself.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.symbol import SymT, symbol_is_type

if TYPE_CHECKING:
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config
    from torch._dynamo.exc import RestartAnalysis, TensorifyScalarRestartAnalysis
    from torch._dynamo.symbolic_convert import TensorifyState
    from torch._inductor.codecache import CppCodeCache, torch_key
    from torch._inductor.cpu_vec_isa import pick_vec_isa, supported_vec_isa_list, x86_isa_checker
    from torch._inductor.output_code import CompiledFxGraph
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch._inductor.standalone_compile import AOTCompiledArtifact

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
    "supported_vec_isa_list",
    "symbol_is_type",
    "torch_key",
    "x86_isa_checker",
]

_FUNCTORCH: Final = "functorch."
_HOMES: Final[Mapping[str, str]] = {
    "AOTCompiledArtifact": "torch._inductor.standalone_compile",
    "CompiledFxGraph": "torch._inductor.output_code",
    "CppCodeCache": "torch._inductor.codecache",
    "RestartAnalysis": "torch._dynamo.exc",
    "TensorifyScalarRestartAnalysis": "torch._dynamo.exc",
    "TensorifyState": "torch._dynamo.symbolic_convert",
    "cache_dir": "torch._inductor.runtime.cache_dir_utils",
    "functorch_config": "torch._functorch",
    "inductor_config": "torch._inductor",
    "pick_vec_isa": "torch._inductor.cpu_vec_isa",
    "supported_vec_isa_list": "torch._inductor.cpu_vec_isa",
    "torch_key": "torch._inductor.codecache",
    "x86_isa_checker": "torch._inductor.cpu_vec_isa",
}
"""The modules that define these names; for the two configurations, their packages."""


def __getattr__(name: str) -> Any:
    """Import a name on first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.endswith("_config"):
        return importlib.import_module(f"{home}.config")
    return getattr(importlib.import_module(home), name)


def modes() -> tuple[str, ...]:
    """The modes of torch.compile."""
    return tuple(_mode_options()())


def mode_settings(mode: str) -> Mapping[str, Any]:
    """The Inductor settings of a mode of torch.compile.

    Raises:
        RuntimeError: torch has no such mode.
    """
    settings: Mapping[str, Any] = _mode_options()(mode)
    return settings


def _mode_options() -> Any:
    return importlib.import_module("torch._inductor").list_mode_options


def portable_configuration() -> dict[str, Any]:
    """All settings of Inductor and AOTAutograd that torch includes in its cache keys."""
    inductor, functorch = _place("")[0], _place(_FUNCTORCH)[0]
    found = {f"inductor.{k}": v for k, v in inductor.save_config_portable().items()}
    found.update({f"aot.{k}": v for k, v in functorch.save_config_portable().items()})
    return found


def has_setting(name: str) -> bool:
    """Whether this torch has a setting.

    Args:
        name: A setting of Inductor, or "functorch." and a setting of torch._functorch.config.
    """
    config, own = _place(name)
    return own in getattr(config, "_config")  # noqa: B009 - made at run time


def current_setting(name: str) -> Any:
    """The value of a setting in this process, including patches and environment."""
    config, own = _place(name)
    return functools.reduce(getattr, own.split("."), config)


def default_setting(name: str) -> Any:
    """The default of a setting, without patches."""
    config, own = _place(name)
    return getattr(config, "_config")[own].default  # noqa: B009 - made at run time


def _place(name: str) -> tuple[Any, str]:
    if name.startswith(_FUNCTORCH):
        return __getattr__("functorch_config"), name.removeprefix(_FUNCTORCH)
    return __getattr__("inductor_config"), name


def backed_values(env: ShapeEnv) -> Mapping[sympy.Symbol, Any]:
    """The values of symbols in the traced call; torch 2.13 has renamed it."""
    name = "backed_var_to_val" if hasattr(env, "backed_var_to_val") else "var_to_val"
    known: Mapping[sympy.Symbol, Any] = getattr(env, name)
    return known
