"""Graph bodies written by hand, past every check that the client makes.

Rows are interned in first-use order, so that a body is refused for what it says
and not for the order in which it says it.
"""

from __future__ import annotations

import math
from typing import Any

from lazyfx.v1 import graph_pb2 as pb

OPCODES = {
    "placeholder": pb.OPCODE_PLACEHOLDER,
    "get_attr": pb.OPCODE_GET_ATTR,
    "call_function": pb.OPCODE_CALL_FUNCTION,
    "call_method": pb.OPCODE_CALL_METHOD,
    "call_module": pb.OPCODE_CALL_MODULE,
    "output": pb.OPCODE_OUTPUT,
}
# Bytes that stand where a lone surrogate is put after serialization: protobuf refuses to.
_SURROGATE_STAND_IN = "\x01\x02\x03"
Json = Any


class Unsayable(Exception):
    """The format has no way to say this."""


class RawGraph:
    """Builds one root graph."""

    def __init__(self) -> None:
        self.body = pb.GraphBody()
        self.columns = self.body.graphs.add()
        self.names = pb.Presentation()
        self.given = self.names.graphs.add()
        self._attributes: dict[str, int] = {}
        self._node = 0
        self._surrogates: list[bytes] = []

    def serialized(self) -> bytes:
        data = self.body.SerializeToString(deterministic=True)
        for surrogate in self._surrogates:
            data = data.replace(_SURROGATE_STAND_IN.encode(), surrogate)
        return data

    def _intern(self, table: Any, row: Any) -> int:
        for i, known in enumerate(table):
            if known == row:
                return i
        if isinstance(row, str):
            table.append(row)
        else:
            table.add().CopyFrom(row)
        return len(table) - 1

    def text(self, value: str) -> int:
        try:
            value.encode()
        except UnicodeEncodeError:
            assert len(value) == 1
            self._surrogates.append(value.encode("utf-8", "surrogatepass"))
            value = _SURROGATE_STAND_IN
        return self._intern(self.body.strings, value)

    def target(self, kind: int, name: str) -> int:
        return self._intern(self.body.targets, pb.Target(kind=kind, name=name))

    def device(self, kind: int = pb.DEVICE_TYPE_CPU) -> int:
        return self._intern(self.body.devices, pb.Device(type=kind))

    def tensor(self, **row: Any) -> int:
        row = {"dtype": pb.DTYPE_FLOAT32, "device": 0, **row}
        if "device_type" in row:
            row["device"] = self.device(row.pop("device_type"))
        else:
            self.device()
        return self._intern(self.body.tensors, pb.TensorDescription(**row))

    def attribute(self, path: str, row: pb.Attribute) -> int:
        """The index of the attribute at a path, which is added when it is new."""
        if path not in self._attributes:
            self._attributes[path] = len(self.columns.attributes)
            self.columns.attributes.add().CopyFrom(row)
            self.given.attribute_paths.append(path)
        return self._attributes[path]

    def tensor_attribute(self, path: str, *, storage: int | None = None, **row: Any) -> int:
        if path in self._attributes:
            return self._attributes[path]
        number = len(self.columns.attributes) if storage is None else storage
        tensor = self.tensor(is_parameter=True, requires_grad=True, **({"shape": [2]} | row))
        described = pb.TensorAttribute(tensor=tensor, role=pb.TENSOR_ROLE_PARAMETER, storage=number)
        return self.attribute(path, pb.Attribute(tensor=described))

    def argument(self, value: Json, operands: list[int]) -> pb.Argument:
        if isinstance(value, pb.Argument):
            return value
        if isinstance(value, dict) and len(value) == 1 and str(next(iter(value)))[:1] == "$":
            return self._special(*next(iter(value.items())), operands)
        made = pb.Argument()
        if isinstance(value, (list, tuple)):
            items = made.list if isinstance(value, list) else made.tuple
            items.SetInParent()
            for item in value:
                items.items.add().CopyFrom(self.argument(item, operands))
        elif isinstance(value, dict):
            made.dictionary.SetInParent()
            for key in sorted(value, key=lambda key: (type(key) is str, str(key))):
                entry = made.dictionary.entries.add()
                entry.key.CopyFrom(self.argument(key, operands))
                entry.value.CopyFrom(self.argument(value[key], operands))
        else:
            self._literal(made, value)
        return made

    def _literal(self, made: pb.Argument, value: Json) -> None:
        if value is None:
            made.none.SetInParent()
        elif isinstance(value, bool):
            made.boolean = value
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise Unsayable("an integer of more than 64 bits")
            made.integer = value
        elif isinstance(value, float):
            made.floating = value
        elif isinstance(value, str):
            made.text = self.text(value)
        else:
            raise Unsayable(f"a {type(value).__name__}")

    def _special(self, kind: str, value: Json, operands: list[int]) -> pb.Argument:
        if kind == "$node":
            # A delta that cannot be is written as it is: uint32 wraps.
            operands.append((self._node - value) % 2**32)
            return pb.Argument(operand=pb.Empty())
        if kind in ("$pow2", "$pow10"):
            return self.argument({"$pow2": 2, "$pow10": 10}[kind] ** value, operands)
        if kind == "$repeat":
            return self.argument(expanded({kind: value}), operands)
        if kind == "$float":
            return pb.Argument(floating=float(value))
        if kind == "$complex":
            real, imaginary = map(float, value)
            return pb.Argument(complex=pb.Complex(real=real, imaginary=imaginary))
        if kind == "$callable":
            return pb.Argument(target=self.target(pb.TARGET_KIND_FUNCTION, value))
        if kind == "$dtype":
            return pb.Argument(dtype=pb.Dtype.Value(f"DTYPE_{value.upper()}"))
        raise Unsayable(kind)

    def node(
        self,
        op: str,
        *,
        target: tuple[int, str] | None = None,
        args: Json = (),
        kwargs: Json = None,
        attribute: int | None = None,
        name: str | None = None,
        argument_name: str | None = None,
        stars: int = 0,
        value: int | None = None,
    ) -> int:
        """Append a node; its number."""
        operands: list[int] = []
        call = pb.Call(opcode=OPCODES.get(op, 99), stars=stars)  # type: ignore[arg-type]
        if target is not None:
            call.target = 1 + self.target(*target)
        for item in args:
            call.args.add().CopyFrom(self.argument(item, operands))
        for keyword in sorted(kwargs or {}):
            row = call.kwargs.add(name=self.text(keyword))
            row.value.CopyFrom(self.argument(kwargs[keyword], operands))
        self.columns.calls.append(self._intern(self.body.calls, call))
        if attribute is not None:
            self.columns.operands.append(attribute)
        self.columns.operands.extend(operands)
        if value is not None or self.columns.values:
            missing = self._node - len(self.columns.values)
            self.columns.values.extend([0] * missing + [0 if value is None else 1 + value])
        number = self._node
        self._node += 1
        self.given.stems.append(f"n{number}" if name is None else name)
        self.given.stem.append(number)
        self.given.suffix.append(0)
        if argument_name is not None:
            self.given.placeholder_targets.add(node=number, target=argument_name)
        return number

    def finished(self) -> RawGraph:
        """Fill in what is one a row of another table."""
        if self.columns.values:
            self.columns.values.extend([0] * (self._node - len(self.columns.values)))
        self.names.device_indices.extend([0] * len(self.body.devices))
        return self


def expanded(value: Json, replace: dict[str, str] | None = None) -> Json:
    """Corpus JSON with `$repeat` and `$concat` carried out and `{MARKER}` filled in."""
    if isinstance(value, str):
        for word, text in (replace or {}).items():
            value = value.replace("{" + word + "}", text)
        return value
    if isinstance(value, list):
        return [expanded(item, replace) for item in value]
    if isinstance(value, dict):
        if set(value) == {"$repeat"}:
            inner = value["$repeat"]
            repeated = expanded(inner["value"], replace)
            return (
                repeated * inner["count"]
                if isinstance(repeated, str)
                else [repeated] * inner["count"]
            )
        if set(value) == {"$concat"}:
            return "".join(expanded(item, replace) for item in value["$concat"])
        return {expanded(k, replace): expanded(v, replace) for k, v in value.items()}
    return value


def spellings(op: str, name: str) -> list[tuple[int, str]]:
    """Every way in which the format can name a callable of the corpus."""
    if op == "call_method":
        return [(pb.TARGET_KIND_METHOD, name)]
    found = [(pb.TARGET_KIND_FUNCTION, name)]
    if name.startswith("_operator."):
        found = [(pb.TARGET_KIND_FUNCTION, name.removeprefix("_"))]
    if name.startswith("torch.ops."):
        namespace, _, rest = name.removeprefix("torch.ops.").partition(".")
        packet, _, overload = rest.partition(".")
        found += [
            (pb.TARGET_KIND_OPERATOR, f"{namespace}::{packet}.{overload or 'default'}"),
            (pb.TARGET_KIND_OPERATOR_PACKET, f"{namespace}::{packet}"),
            (pb.TARGET_KIND_HIGHER_ORDER_OPERATOR, rest or namespace),
        ]
    return found


def from_corpus(
    nodes: list[Json], attrs: dict[str, str], spelling: int = 0, *, by_node_name: bool = False
) -> RawGraph:
    """The graph of a `payload.graph`.

    Args:
        nodes: As in the corpus, expanded.
        attrs: Paths of attributes and what they are: "tensor" or "relu".
        spelling: Which of `spellings` names the callables.
        by_node_name: A placeholder's target goes into its node's name, not next to it.
    """
    graph = RawGraph()
    for node in nodes:
        op, target = node["op"], node.get("target", "")
        named: dict[str, Any] = {"name": node.get("name")}
        if op == "placeholder":
            named = {"name": target} if by_node_name else {"argument_name": target, **named}
        elif op in ("call_function", "call_method"):
            options = spellings(op, target)
            named["target"] = options[min(spelling, len(options) - 1)]
        elif op in ("get_attr", "call_module"):
            named["attribute"] = _attribute(graph, target, attrs)
        graph.node(
            op,
            args=node.get("args", () if op != "output" else (None,)),
            kwargs=node.get("kwargs"),
            **named,
        )
    return graph.finished()


def _attribute(graph: RawGraph, path: str, attrs: dict[str, str]) -> int:
    kind = attrs.get(path)
    if kind == "relu":
        options = [pb.ModuleOption(name="inplace", value=pb.Argument(boolean=False))]
        return graph.attribute(
            path, pb.Attribute(module=pb.LeafModule(type="ReLU", options=options))
        )
    if kind == "tensor":
        return graph.tensor_attribute(path)
    return 0


def same_float(left: float, right: float) -> bool:
    return left == right or (math.isnan(left) and math.isnan(right))
