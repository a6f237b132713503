"""torch.utils._pytree.TreeSpec of closed types <-> TreeSpec messages."""

from __future__ import annotations

from typing import Any

from torch.utils import _pytree as pytree

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared.wire.arguments import argument_kind
from lazyfx.shared.wire.format import MAX_DEPTH
from lazyfx.shared.wire.targets import autograd_functions
from lazyfx.shared.wire.writing.message_tables import Tables
from lazyfx.v1 import graph_pb2 as pb

_KINDS: dict[Any, pb.TreeSpecKind.ValueType] = {
    tuple: pb.TREE_SPEC_KIND_TUPLE,
    list: pb.TREE_SPEC_KIND_LIST,
    dict: pb.TREE_SPEC_KIND_DICT,
}


def is_tree_spec(value: object) -> bool:
    """Whether `value` is a pytree structure."""
    return isinstance(value, pytree.TreeSpec)


def write(spec: Any, message: pb.TreeSpec, tables: Tables, depth: int = 0) -> None:
    """Fill `message` with a structure of tuples, lists and dicts, or a call by name.

    Raises:
        UnsupportedGraphError: A node of another type, or nesting that is too deep.
    """
    if depth >= MAX_DEPTH:
        raise UnsupportedGraphError("a pytree structure is nested too deeply")
    if spec.is_leaf():
        message.kind = pb.TREE_SPEC_KIND_LEAF
        return
    kind = _KINDS.get(spec.type)
    if kind is None and not depth and spec == autograd_functions.calling_spec():
        message.kind = pb.TREE_SPEC_KIND_AUTOGRAD_FUNCTION
        return
    if kind is None:
        raise UnsupportedGraphError(
            f"a pytree node of type {getattr(spec.type, '__name__', spec.type)}",
            remedy="use tuples, lists and dicts, or decompose the program first "
            "(ExportedProgram.run_decompositions)",
        )
    message.kind = kind
    if kind == pb.TREE_SPEC_KIND_DICT:
        for key in spec.context:
            if type(key) not in (str, int):
                raise UnsupportedGraphError(f"a pytree key of type {type(key).__name__}")
            argument_kind.write(key, message.keys.add(), tables)
    for child in spec.children():
        write(child, message.children.add(), tables, depth + 1)


def read(message: pb.TreeSpec, body: pb.GraphBody, depth: int = 0) -> pytree.TreeSpec:
    """The structure that a message describes.

    Raises:
        DecodeError: An unknown kind, a key that is not text or an integer, as many
            keys as children missed, or nesting that is too deep.
    """
    if depth >= MAX_DEPTH:
        raise DecodeError("nested too deeply", field="tree_spec")
    children = [read(child, body, depth + 1) for child in message.children]
    if message.kind == pb.TREE_SPEC_KIND_LEAF and not children:
        return pytree.treespec_leaf()
    if message.kind == pb.TREE_SPEC_KIND_AUTOGRAD_FUNCTION and not (children or depth):
        return autograd_functions.calling_spec()
    if message.kind == pb.TREE_SPEC_KIND_TUPLE:
        return pytree.TreeSpec(tuple, None, children)
    if message.kind == pb.TREE_SPEC_KIND_LIST:
        return pytree.TreeSpec(list, None, children)
    if message.kind == pb.TREE_SPEC_KIND_DICT and len(message.keys) == len(children):
        keys = [_read_key(key, body) for key in message.keys]
        if len(set(keys)) == len(keys):
            return pytree.TreeSpec(dict, keys, children)
    raise DecodeError("not a structure of tuples, lists and dicts", field="tree_spec")


def _read_key(key: pb.Argument, body: pb.GraphBody) -> str | int:
    kind = key.WhichOneof("kind")
    if kind == "integer":
        return key.integer
    if kind == "text" and key.text < len(body.strings):
        return body.strings[key.text]
    raise DecodeError("a key is neither text nor integer", field="tree_spec.keys")
