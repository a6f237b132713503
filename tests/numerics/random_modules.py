"""Random modules: views, writes in place, shared memory, draws, modes, odd dtypes and literals.

A program is lines of Python, grown one line at a time: a line that fails on real tensors is
dropped. It uses inputs that may share memory with each other and with attributes of its module.
"""

from __future__ import annotations

import operator
import random
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# {t}: a tensor, {f}: a floating-point one, {n}: a literal.
FRESH = (
    "{t} * {n}", "{t} + {t}", "{t} - {n}", "{t} / 2", "{f}.relu()", "torch.relu({f})",
    "F.relu({f})", "{t}.clone()", "{t}.abs()", "torch.exp({f} * 0.1)", "{f}.sum(-1, keepdim=True)",
    "{f}.softmax(-1)", "F.silu({f})", "torch.where({t} > {n}, {t}, {t})", "torch.cat([{f}, {f}])",
    "torch.stack([{f}, {f}])", "{f} @ {f}", "torch.zeros_like({t})", "torch.full_like({f}, {n})",
    "torch.arange(3.0) + 1", "torch.full((2, 3), {n})", "torch.zeros(2, 3)", "{t} * 1", "{t} + 0",
    "{t} == {t}", "{t}.to(torch.float64)", "{t}.to(torch.float32)", "{f}.half()", "{t}.bool()",
    "{f}.to(torch.complex64)", "torch.complex({f}, {f})", "{t}.conj().resolve_conj()",
    "{t}.real.clone()", "{t}.cumsum(0)", "{f}.mean()", "{f}.var(-1)", "torch.add({t}, {t}, alpha=2)",
    "{t}.sum()", "torch.maximum({f}, {f})", "{f}.clamp(-1, 1)", "torch.addmm({f}, {f}, {f})",
    "F.linear({f}, self.weight)", "F.linear({f}, {f})", "self.linear({f})", "self.linear({f})",
    "self.second({f})", "F.layer_norm({f}, (3,))", "torch.pow({f}, 2)", "{f} ** 1",
    "torch.nan_to_num({f})", "{t}.sum(0)", "{t}.repeat(2, 1)", "{t}.flip(0)", "{f}.sqrt()",
    "torch.empty_like({t}).copy_({t})", "self.state * 2", "self.part + 1", "self.weight.t() * 1",
    "torch.ones(0, 3)", "{f}.new_full((2, 3), {n})", "torch.tensor([{n}, 1.0])",
)  # fmt: skip
VIEWS = (
    "{t}.view(-1)", "{t}.t()", "{t}[0]", "{t}[:1]", "{t}[..., 1:]", "{t}.transpose(0, 1)",
    "{t}.unsqueeze(0)", "{t}.squeeze()", "{t}.reshape(-1)", "{t}.reshape({t}.shape)", "{t}.detach()",
    "{t}.expand(2, 3)", "{t}.contiguous()", "{t}.to(torch.float32)", "{t}.view(torch.int32)",
    "torch.view_as_real({t})", "{t}.diagonal()", "{t}.view({t}.size())", "{t}.narrow(-1, 0, 2)",
    "torch.chunk({t}, 2, -1)[0]", "{t}.unbind(0)[1]", "{t}.split(2, -1)[0]", "{t}.real",
    "F.dropout({f}, 0.5, training=False)", "self.identity({t})", "self.still({f})", "{t}.flatten()",
    "{t}.movedim(0, 1)", "{t}.mT", "{t}.view_as({t})", "{t}.float()", "{t}.conj()", "self.state",
    "self.part", "{t}.alias()", "{t}.select(0, 1)", "{t}.swapaxes(0, 1)",
    "torch.broadcast_to({t}, (2, 3))", "torch.atleast_2d({t})", "torch.as_strided({t}, (2,), (1,))",
)  # fmt: skip
WRITES = (
    "{t}.add_({n})", "{t}.mul_({n})", "{t}.add_({t})", "{t}.copy_({t})", "{t}.zero_()",
    "{f}.clamp_(-2, 2)", "{t}.fill_({n})", "setitem({t}, 0, {n})", "setitem({t}, (..., slice(1, None)), {n})", "setitem({t}, 0, {t}[1])",
    "{f}.masked_fill_({f} > 0.5, {n})", "{f}.relu_()", "F.relu({f}, inplace=True)",
    "torch.add({t}, {t}, out={t})", "torch.mul({t}, 2, out={t})", "{t}.sub_({t}, alpha=2)",
    "torch._foreach_add_([{t}, {t}], 1.0)", "torch._foreach_mul_([{t}, {t}], [{t}, {t}])",
    "{f}.index_add_(0, torch.tensor([0, 0]), {f})", "self.state.add_(1)", "self.part.mul_(2)",
    "self.state.copy_({t})", "self.loose.add_(1)", "{t}.detach().add_(1)", "{t}.data.mul_(2)",
    "{t}.neg_()", "{t}.t_()", "{t}.unsqueeze_(0)", "{t}.squeeze_()", "{t}.transpose_(0, 1)",
    "{f}.addcmul_({f}, {f}, value=0.5)", "{f}.lerp_({f}, 0.5)", "torch.relu_({f})",
    "torch.sum({f}, -1, out={f})", "{t}.index_fill_(0, torch.tensor([0]), {n})",
    "{t}.scatter_(0, torch.zeros(1, 3, dtype=torch.int64), {n})", "{f}.exp_()", "{t}.masked_fill_({t} == {t}, {n})",
    "{t}.index_put_((torch.tensor([0]),), {t})", "{t}.diagonal().fill_({n})",
)  # fmt: skip
UPDATES = ("{t} += {n}", "{t} *= {t}", "{t} -= {t}")
DRAWS = (
    "F.dropout({f}, 0.5)", "self.dropout({f})", "torch.rand_like({f})", "torch.rand(3)",
    "torch.bernoulli({f}.sigmoid())", "{f} + torch.randn(3)", "F.dropout({f}, 0.3, inplace=True)",
    "{f}.uniform_()", "{f}.normal_()", "torch.randperm(3)", "F.rrelu({f}, training=True)",
    "torch.rand(2, 3)",
)  # fmt: skip
STATEFUL = ("self.norm({f})", "self.still_norm({f})", "self.embedding({t}.long().abs() % 4)",
            "F.batch_norm({f}, self.mean, self.variance, training=True)",
            "self.linear(self.linear({f}))", "self.still_norm(self.linear({f}))")  # fmt: skip
REGIONS = ("with torch.no_grad():", "with torch.autocast('cpu', dtype=torch.bfloat16):",
           "with torch.enable_grad():")  # fmt: skip
LITERALS = ("0", "1", "2", "-1", "0.5", "-0.0", "0.0", "float('nan')", "float('inf')", "1e-3",
            "True", "3.0")  # fmt: skip


class State(nn.Module):
    """What the lines of a program call `self`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.norm = nn.BatchNorm1d(3)
        self.still_norm = nn.BatchNorm1d(3).eval()
        self.dropout = nn.Dropout(0.5)
        self.still = nn.Dropout(0.5).eval()
        self.identity = nn.Identity()
        self.embedding = nn.Embedding(4, 3, max_norm=1.0)
        self.register_buffer("state", torch.arange(6.0).view(2, 3) * 0.25)
        self.register_buffer("part", self.state[1])
        self.register_buffer("mean", self.still_norm.running_mean)
        self.register_buffer("variance", torch.ones(3))
        self.loose = torch.ones(3)


@dataclass
class Program:
    """A module as text.

    Attributes:
        seed: What it was made from.
        lines: The body of its forward.
        grads: Whether it is differentiated.
    """

    seed: int
    lines: list[str] = field(default_factory=list)
    grads: bool = False
    regions: bool = False

    @property
    def text(self) -> str:
        """The forward as source."""
        body = "\n    ".join(self.lines)
        return f"def forward(self, a, b, d, c=2.0):\n    {body}\n"

    def module(self) -> nn.Module:
        """A new module that runs it; its tensors are the same each time."""
        namespace: dict[str, Any] = {"torch": torch, "F": F, "setitem": operator.setitem}
        exec(self.text, namespace)
        kind = type("Model", (State,), {"forward": namespace["forward"]})
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            made: nn.Module = kind()
        return made

    def inputs(self, how: str = "apart", module: nn.Module | None = None) -> dict[str, Tensor]:
        """Inputs a, b, d: the last is integral; how a and b share memory."""
        generator = torch.Generator().manual_seed(self.seed)
        memory = torch.randn(24, generator=generator)
        found = {"a": memory[:6].view(2, 3), "b": memory[12:18].view(2, 3)}
        if how == "same":
            found["b"] = found["a"]
        elif how == "shifted":
            found["b"] = memory[3:9].view(2, 3)
        elif how == "strided":
            found["a"], found["b"] = memory[:6].view(3, 2).t(), memory[12:].view(4, 3)[::2]
        elif how == "state" and module is not None:
            found["b"] = dict(module.named_buffers())["state"]
        found["d"] = torch.tensor([2, 0, 1])
        return found


def random_program(seed: int, *, most: int = 14) -> Program:
    """A program that runs."""
    return _Growing(seed, most).program


class _Growing:
    def __init__(self, seed: int, most: int) -> None:
        self._random = random.Random(seed)
        chance = self._random.random
        self.program = Program(seed, [], grads=chance() < 0.4)
        kinds = [(FRESH, 5), (VIEWS, 4), (WRITES, 4), (UPDATES, 1)]
        kinds += [(DRAWS, 1)] if chance() < 0.4 else []
        kinds += [(STATEFUL, 2)] if chance() < 0.5 else []
        self._kinds = [kind for kind, times in kinds for _ in range(times)]
        self.program.regions = chance() < 0.25
        self._names: list[str] = ["a", "b", "d", "self.state", "self.weight"]
        self._reset()
        wanted = self._random.randint(3, most)
        for _ in range(6 * wanted):
            if len(self.program.lines) >= wanted:
                break
            self._try_line()
        self._return()

    def _reset(self) -> None:
        """Runs the lines so far on new inputs."""
        plain = Program(self.program.seed, [], self.program.grads)
        plain.lines = ["return None"]
        module = plain.module()
        inputs = plain.inputs()
        if self.program.grads:
            for name in ("a", "b"):
                inputs[name] = inputs[name].clone().requires_grad_() * 1
        self._space: dict[str, Any] = {
            "torch": torch, "F": F, "setitem": operator.setitem, "self": module, "c": 2.0, **inputs
        }  # fmt: skip
        for line in self.program.lines:
            exec(line, self._space)

    def _try_line(self) -> None:
        choice = self._random.choice
        kind = choice(self._kinds)
        template = choice(kind)
        text = self._filled(template)
        if text is None:
            return
        name = ""
        if kind in (FRESH, VIEWS, STATEFUL, DRAWS):
            name = f"v{len(self.program.lines)}"
            text = f"{name} = {text}"
        if self.program.regions and self._random.random() < 0.3:
            text = f"{choice(REGIONS)} {text}"
        try:
            exec(text, self._space)
            runs = not name or isinstance(self._space[name], Tensor)
        except Exception:  # noqa: BLE001 - what cannot run is no program
            runs = False
        if not runs:
            return
        self.program.lines.append(text)
        if name:
            self._names.append(name)

    def _filled(self, template: str) -> str | None:
        while "{" in template:
            place = template.index("{")
            kind = template[place + 1]
            word = self._literal() if kind == "n" else self._operand(floating=kind == "f")
            if word is None:
                return None
            template = template[:place] + word + template[place + 3 :]
        return template

    def _literal(self) -> str:
        return self._random.choice(LITERALS if self._random.random() < 0.5 else ("2", "0.5"))

    def _operand(self, *, floating: bool) -> str | None:
        # Later values more often: programs with long dependencies.
        names = self._names + self._names[-3:] * 2
        for _ in range(8):
            name = self._random.choice(names)
            value = eval(name, self._space)
            if isinstance(value, Tensor) and (not floating or value.is_floating_point()):
                return name
        return None

    def _return(self) -> None:
        names = [n for n in self._names if not n.startswith("self.weight")]
        chosen = [
            self._random.choice(names[-6:] + names) for _ in range(self._random.randint(1, 4))
        ]
        form = self._random.random()
        if form < 0.3:
            self.program.lines.append(f"return {{'x': ({', '.join(chosen)},), 'y': 1}}")
        else:
            self.program.lines.append(f"return ({', '.join(chosen)},)")


def leaves(value: Any) -> list[Tensor]:
    """The tensors in a result."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
