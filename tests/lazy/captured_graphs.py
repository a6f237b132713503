"""Graphs with everything that a saved format may get wrong, captured once for all tests."""

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.while_loop import while_loop
from torch.fx import GraphModule, symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(12.0).reshape(3, 4))

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, Any]:
        y = self.linear(self.norm(x)) * scale + self.table[1:2].exp()
        return {"y": y, "pair": (y + 1, y - 1)}


class Buffer(nn.Module):
    """Adds a buffer of any dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("b", torch.ones(3).to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b.float()


class Views(nn.Module):
    """Writes through one view of a buffer and reads through another, and through another name."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.arange(6.0)
        self.register_buffer("a", whole[:3])
        self.register_buffer("b", whole[1:4])
        self.register_buffer("c", self.a)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.a.add_(x)
        return self.b * 1, self.c * 1, self.a * 2


class Leaves(nn.Module):
    """Leaf modules with state of their own, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.LSTM(3, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.BatchNorm1d(2)
        self.again = self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.rows(x)
        return self.again(self.norm(self.attention(y, y, y)[0]))


def exported(model: Callable[..., Any], *args: Any) -> GraphModule:
    class Wrapped(nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return model(*inputs)

    module = model if isinstance(model, nn.Module) else Wrapped()
    return torch.export.export(module, args, strict=False).module(check_guards=False)  # type: ignore[return-value]


def of_dynamo(function: Callable[..., Any], *args: Any, dynamic: bool | None = None) -> GraphModule:
    found: list[GraphModule] = []

    def backend(module: GraphModule, _inputs: Any) -> Callable[..., Any]:
        found.append(module)
        return module.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)(
        *[a.clone() for a in args]
    )
    return found[0]


def into_fresh(x, index):
    out = torch.zeros(4)
    out.index_add_(0, index, x)
    return out


def in_place(name: str) -> Callable[..., Any]:
    def f(buffer, x):
        return getattr(operator, name)(buffer, x) * 2

    return f


def set_item(y):
    y = y * 1
    y[0] = 7
    return y


def branch(x):
    return torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a * 2, (x,))


def loop(x):
    return while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, a * 2), (torch.tensor(0), x))


def scan(x):
    return associative_scan(lambda a, b: a + b, x, 0, combine_mode="generic")


def item_then_zeros(x):
    count = x.sum().item()
    torch._check(count >= 0)
    torch._check(count < 10)
    return torch.zeros(count) + 1


def under_autocast(x):
    with torch.autocast("cpu"):
        return x @ x


def without_grad(x):
    with torch.no_grad():
        y = x * 2
    return y + x


def views(x):
    return x[..., None, 1:2].to(torch.float64, memory_format=torch.preserve_format)


@cache
def graphs() -> dict[str, tuple[GraphModule, tuple[Any, ...]]]:
    """Graphs and their inputs by name; whoever changes one copies it first."""
    three, square = torch.tensor([1.0, 2.0, 3.0]), torch.randn(3, 3)
    into = (torch.ones(3), torch.tensor([2, 2, 3]))
    found = {
        "index_add": (exported(into_fresh, *into), into),
        "index_add_makefx": (make_fx(into_fresh)(*into), into),
        "randn": (exported(lambda x: x + torch.randn(3), three), (three,)),
        "item": (exported(item_then_zeros, torch.tensor([1, 2])), (torch.tensor([1, 2]),)),
        "scan": (exported(scan, three), (three,)),
        "loop": (exported(loop, three), (three,)),
        "batch_norm": (exported(nn.BatchNorm1d(3).train(), square), (square,)),
        "views": (symbolic_trace(Views()), (three,)),
        "leaves": (symbolic_trace(Leaves()), (torch.randn(5, 2, 3),)),
        "leaves_eval": (symbolic_trace(Leaves().eval()), (torch.randn(5, 2, 3),)),
        "vmap": (of_dynamo(torch.func.vmap(torch.sin), square), (square,)),
    }
    for name in ("iadd", "imul", "isub", "itruediv", "ipow"):
        found[name] = (of_dynamo(in_place(name), three, three), (three, three))
    for name, function, x in (
        ("set_item", set_item, three),
        ("branch", branch, three),
        ("autocast", under_autocast, square),
        ("no_grad", without_grad, three),
        ("slices", views, square),
    ):
        found[f"{name}_export"] = (exported(function, x), (x,))
        found[f"{name}_dynamo"] = (of_dynamo(function, x), (x,))
    for dtype in (
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
        *(torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.bfloat16, torch.bool),
    ):
        found[f"buffer_{str(dtype)[6:]}"] = (exported(Buffer(dtype), three), (three,))
    return found
