"""What is said of operators, compared with what they do to the samples of torch's own database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lazyfx_server.passes.analysis.effects import effects_of

DTYPES = (torch.float32, torch.complex64, torch.int64)


class Compared:
    """Calls operators, and notes where they do more than `effects_of` says."""

    def __init__(self) -> None:
        self.wrong: dict[str, None] = {}
        self.calls = 0

    def call(self, op: str, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Calls an operator, or a method by its name."""
        inputs: dict[int, tuple[Node, Tensor]] = {}
        graph = GraphModule(nn.Module(), Graph()).graph

        def node(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) not in inputs:
                inputs[id(value)] = graph.placeholder(f"p{len(inputs)}"), value
            return inputs[id(value)][0]

        given = tree_map(node, (tuple(args), dict(kwargs)))
        effects = effects_of(graph.create_node(op, target, *given))
        versions = {key: tensor._version for key, (_, tensor) in inputs.items()}
        drawn = torch.get_rng_state()
        called = getattr(torch.Tensor, target) if op == "call_method" else target
        result = called(*args, **kwargs)
        self.calls += 1
        made = {_memory(t) for t in tree_leaves(result) if isinstance(t, Tensor)} - {None}
        written = {_memory(t) for n, t in inputs.values() if n in effects.writes}
        known = {_memory(t) for n, t in inputs.values() if n in effects.aliases} | written
        for key, (place, tensor) in inputs.items():
            if tensor.numel() and _memory(tensor) in made - known:
                self.wrong[f"{target} returns the memory of {place}"] = None
            if tensor._version != versions[key] and _memory(tensor) not in written:
                self.wrong[f"{target} writes {place}"] = None
        if not torch.equal(drawn, torch.get_rng_state()) and not effects.random:
            self.wrong[f"{target} draws random numbers"] = None
        return result


class Below(TorchDispatchMode):
    """Compares the operators that a function calls."""

    def __init__(self, compared: Compared) -> None:
        super().__init__()
        self._compared = compared

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return self._compared.call("call_function", func, args, kwargs or {})


def _memory(tensor: Tensor) -> int | None:
    if tensor.layout is not torch.strided:
        return None
    return int(tensor.untyped_storage()._cdata)


def samples(info: Any, most: int) -> Iterator[Any]:
    for dtype in DTYPES:
        if dtype in info.supported_dtypes("cpu"):
            yield from islice(info.sample_inputs("cpu", dtype), most)


def compare(infos: Sequence[Any], compared: Compared, most: int) -> None:
    for info in infos:
        for sample in samples(info, most):
            args = (sample.input, *sample.args)
            _try(lambda i=info, s=sample, a=args: _function(compared, i.op, a, s.kwargs))
            method = getattr(info.method_variant, "__name__", "")
            if hasattr(Tensor, method) and isinstance(sample.input, Tensor):
                _try(
                    lambda m=method, s=sample, a=args: compared.call("call_method", m, a, s.kwargs)
                )


def _function(compared: Compared, function: Any, args: Any, kwargs: Any) -> None:
    own = str(getattr(function, "__module__", "")).startswith("torch.testing")
    if not own and getattr(function, "__name__", "<lambda>") != "<lambda>":
        compared.call("call_function", function, args, kwargs)
    with Below(compared):
        function(*args, **kwargs)


def _try(work: Callable[[], object]) -> None:
    """Some samples need a library or a device that is not here."""
    try:
        with torch.no_grad():
            work()
    except Exception:  # noqa: BLE001 - the next sample tells as much
        return


@pytest.fixture(scope="module")
def database() -> list[Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    found: list[Any] = op_db
    return found


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_torchs_operators(database: list[Any]) -> None:
    wanted = ("split", "chunk", "unbind", "histogramdd", "chalf", "unsafe_split")
    compared = Compared()
    compare([info for info in database if info.name in wanted], compared, 2)
    compare(database[::12], compared, 2)
    assert not list(compared.wrong)
    assert compared.calls > 500


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_all_of_torchs_operators(database: list[Any]) -> None:
    compared = Compared()
    compare(database, compared, 6)
    assert not list(compared.wrong)
    assert compared.calls > 10_000
