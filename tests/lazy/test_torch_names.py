"""torch's private names are where they were; fails here first when torch moves one."""

from __future__ import annotations

import inspect

import torch
from torch.fx import GraphModule


def test_lazy_graph_module_has_the_parts_that_are_overridden() -> None:
    from lazyfx_server.lazy.torch_laziness import TorchLazyGraphModule

    assert issubclass(TorchLazyGraphModule, GraphModule)
    parts = (
        "recompile real_recompile _real_recompile _lazy_forward _needs_recompile "
        "__reduce__ __reduce_package__ code"
    )
    missing = [name for name in parts.split() if name not in vars(TorchLazyGraphModule)]
    assert not missing, f"torch {torch.__version__} moved {missing} of _LazyGraphModule"
    source = inspect.getsource(TorchLazyGraphModule._needs_recompile)
    assert "cls.forward is cls._lazy_forward" in source


def test_the_singleton_class_of_a_graph_module_has_its_name() -> None:
    from lazyfx_server.lazy.torch_laziness import SINGLETON_CLASS_NAME

    module = GraphModule(torch.nn.Module(), torch.fx.Graph())
    assert type(module).__qualname__.endswith(SINGLETON_CLASS_NAME)
    assert type(module).__mro__[1] is GraphModule
    assert isinstance(GraphModule.__dict__["__new__"], staticmethod)


def test_torch_says_when_modules_must_be_eager() -> None:
    from lazyfx_server.lazy.torch_laziness import laziness_is_refused, torch_lazy

    assert not laziness_is_refused()
    with torch_lazy._force_skip_lazy_graph_module():
        assert laziness_is_refused()


def test_the_names_of_the_pickle_format() -> None:
    from torch.fx.graph_module import (
        _format_import_block,
        reduce_graph_module,
        reduce_package_graph_module,
    )

    assert list(inspect.signature(reduce_graph_module).parameters) == ["body", "import_block"]
    assert list(inspect.signature(reduce_package_graph_module).parameters) == [
        "importer",
        "body",
        "generated_module_name",
    ]
    assert list(inspect.signature(_format_import_block).parameters) == ["globals", "importer"]


def test_a_recompile_reaches_children_through_its_hook_or_not_at_all() -> None:
    source = inspect.getsource(GraphModule.recompile)
    assert "self._recompile_submodules()" in source or "children" not in source, (
        "torch recompiles children in another way; see LazyModule._recompile_submodules"
    )
