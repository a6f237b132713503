"""What random graphs are made of: literals, callables, values, tensors and modules.

Everything is made once. What a digest must not see (device indices, names of symbols) is
there twice, in the same places of two lists: `PLAIN` and `DISGUISED`.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.value_ranges import ValueRanges

aten = torch.ops.aten

LITERALS: list[Any] = [
    *(0, 1, 2, -1, 2**62, -(2**63), True, False, None, ...),
    *(0.0, -0.0, 1.0, 0.1, 1e300, math.nan, math.inf, -math.inf),
    *("", "a", "b", "1", "cpu", "cuda", "\N{GREEK SMALL LETTER PI}", "a.b"),
    *(1j, complex(0.0, -0.0), complex(-0.0, 0.0), complex(1, math.inf)),
    *(torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.float8_e5m2),
    *(torch.strided, torch.sparse_coo, torch.preserve_format, torch.channels_last),
    *(torch.contiguous_format, torch.Size([]), torch.Size([1]), torch.Size([2, 3])),
    *(slice(None), slice(1), slice(0, None), slice(None, None, -1)),
    *([], (), {}, [1], (1,), [[1]], {"a": 1}, {1: 1}, {True: 1}, {"1": 1}),
    *(torch.relu, aten.relu.default, aten.relu, operator.add),
]

FUNCTIONS: list[Any] = [
    *(aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.add, aten.relu),
    *(aten.relu.default, aten.relu_.default, aten.cat.default, aten.view.default, aten.sum.default),
    *(aten.sum.dim_IntList, aten.clone.default, aten.empty.memory_format, aten.copy_.default),
    *(torch.add, torch.relu, torch.cat, torch.nn.functional.relu, torch.nn.functional.softmax),
    *(operator.add, operator.iadd, operator.getitem, operator.mul, math.sqrt, math.floor),
    *(list, tuple, dict, len, max, min, round, torch.ops.higher_order.tag_activation_checkpoint),
]
METHODS = ["add", "add_", "view", "to", "relu", "items", "keys", "t", "contiguous"]
KEYWORDS = ["a", "b", "dim", "alpha", "memory_format", "out"]


@dataclass(frozen=True)
class Material:
    """One set of things, in fixed places.

    Attributes:
        devices: Devices; of those with an index, two of one type.
        values: What `meta["val"]` may be.
        numbers: Symbolic numbers for arguments, with what makes them up.
        suffix: What names end with.
        spelled: The same devices as text.
        turns: Whether the order of keywords, and of dictionaries for torch, is reversed.
    """

    devices: list[torch.device]
    values: list[Any]
    numbers: list[tuple[Any, str, int]]
    suffix: str = ""
    turns: bool = False
    spelled: tuple[str, ...] = ()


def _fake(mode: FakeTensorMode, index: int) -> list[Any]:
    """Values that differ in one thing each."""

    def on(device: str) -> torch.Tensor:
        return FakeTensor(mode, torch.empty(2, 3, device="meta"), torch.device(device))

    with mode:
        plain = torch.empty(2, 3)
        image = torch.empty(2, 3, 4, 4)
        complex_ = torch.empty(2, dtype=torch.complex64)
        values: list[Any] = [
            *(plain, torch.empty(3, 2), torch.empty(6), torch.empty(2, 3, 1), torch.empty(())),
            *(plain.double(), plain.bool(), plain.to(torch.bfloat16), torch.empty(0, 3)),
            *(torch.empty(3, 2).t(), torch.empty(4, 3)[1:3], torch.empty(2, 6)[:, ::2]),
            *(torch.empty(1, 3).expand(2, 3), image, image.to(memory_format=torch.channels_last)),
            *(torch.empty(2, 3, requires_grad=True), nn.Parameter(plain), complex_),
            *(complex_.conj(), torch._neg_view(plain), torch.empty(2, 3, device="meta")),
            plain.to_sparse(),
        ]
    values += [on(f"cuda:{index}"), on(f"cuda:{index + 1}"), on(f"xpu:{index}")]
    values += [[plain], (plain,), [plain, plain], [], (), None, 1, True, 1.0, 0.0, -0.0, math.nan]
    return values


# (example, lower bound, upper bound): two symbols each.
_RANGES = [(5, 2, 100), (5, 2, 101), (5, 3, 100), (6, 2, 100)]
_EXPRESSIONS = {
    "s": lambda s: s,
    "s + 1": lambda s: s + 1,
    "2 * s": lambda s: 2 * s,
    "s // 2": lambda s: s // 2,
    "s / 3": lambda s: s / 3,
    "s > 7": lambda s: s > 7,
    "max(s, 10)": lambda s: torch.sym_max(s, 10),
}


def _symbols(prefix: str) -> tuple[list[tuple[Any, str, int]], list[torch.Tensor]]:
    """Symbolic numbers, each as (number, expression, which symbol), and tensors of their sizes."""
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env)
    numbers: list[tuple[Any, str, int]] = []
    tensors = []
    for place, (example, lower, upper) in enumerate(_RANGES):
        for twin in range(2):
            # In the disguise, symbols are made in another order, so that their names differ.
            name = f"{prefix}_{place}_{twin}"
            size = env.create_unspecified_symint_and_symbol(
                example, ConstantSource(name), DimDynamic.DYNAMIC
            )
            env.var_to_range[size.node.expr] = ValueRanges(lower, upper)
            for label, make in _EXPRESSIONS.items():
                numbers.append((make(size), label, 2 * place + twin))
            with mode:
                tensors += [torch.empty(size, 3), torch.empty(3, size).t(), torch.empty(3, size)]
    return numbers, tensors


def describe_symbol(which: int) -> tuple[int, int, int]:
    """What is known of a symbol, whatever its name."""
    return _RANGES[which // 2]


def _material(index: int, prefix: str, suffix: str, turns: bool) -> Material:
    numbers, tensors = _symbols(prefix)
    devices = ["cpu", "meta", "cuda", f"cuda:{index}", f"cuda:{index + 1}", f"xpu:{index}"]
    values = _fake(FakeTensorMode(), index) + tensors
    return Material(
        [torch.device(d) for d in devices], values, numbers, suffix, turns, tuple(devices)
    )


PLAIN = _material(0, "plain", "", False)
DISGUISED = _material(4, "other", "_anew_7", True)


def _tensors() -> list[tuple[str, Any]]:
    """Tensors for attributes: the name of their memory, and the tensor."""
    base = torch.arange(8.0)
    weight = nn.Parameter(torch.ones(2, 2))
    loose = [
        *(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), torch.tensor([1, 2]), torch.ones(())),
        *(torch.tensor([0.0]), torch.tensor([-0.0]), torch.tensor([math.nan]), torch.ones(0)),
        *(torch.ones(2, 2), torch.ones(2, 3)[:, :2], torch.ones(1, 2).expand(2, 2)),
        *(torch.tensor([1 + 1j]), torch.tensor([1 - 1j]).conj(), torch.tensor([True, False])),
        *(torch.ones(2, dtype=torch.bfloat16), torch.ones(2, requires_grad=True)),
    ]
    found: list[tuple[str, Any]] = [(f"own{i}", tensor) for i, tensor in enumerate(loose)]
    found += [("base", base[:4]), ("base", base[4:]), ("base", base[:4].view(2, 2))]
    found += [("weight", weight), ("other", nn.Parameter(torch.zeros(2, 2)))]
    return [*found, ("frozen", nn.Parameter(torch.ones(2, 2), requires_grad=False))]


TENSORS = _tensors()


def _modules() -> list[tuple[str, nn.Module]]:
    """Modules to call: what they are, and the module."""
    shared = nn.Linear(2, 2)
    tied = nn.Linear(2, 2)
    tied.weight = shared.weight
    makers: dict[str, nn.Module] = {
        "linear": shared,
        "tied": tied,
        "another": nn.Linear(2, 2),
        "no bias": nn.Linear(2, 2, bias=False),
        "dropout": nn.Dropout(0.1),
        "more": nn.Dropout(0.2),
        "off": nn.Dropout(0.1).eval(),
        "relu": nn.ReLU(),
        "in place": nn.ReLU(inplace=True),
        "six": nn.ReLU6(),
        "norm": nn.BatchNorm1d(2),
        "norm eps": nn.BatchNorm1d(2, eps=1e-3),
        "frozen norm": nn.BatchNorm1d(2).eval(),
    }
    return list(makers.items())


MODULES = _modules()
