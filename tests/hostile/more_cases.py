"""Cases of our own, of the corpus's classes: other ways to the same ends."""

from __future__ import annotations

from typing import Any

X = {"op": "placeholder", "target": "x"}
N = {"$node": 0}
FUNCTION, METHOD = "call_function", "call_method"


def graph(*nodes: dict[str, Any], run: str = "forward", output: Any = None) -> dict[str, Any]:
    """A payload: an argument, these nodes, and the last of them as the result."""
    made = [X, *nodes]
    result = {"$node": len(nodes)} if output is None else output
    return {"graph": [*made, {"op": "output", "args": [result]}], "run": run}


def call(target: str, *args: Any, op: str = FUNCTION, **kwargs: Any) -> dict[str, Any]:
    """A node."""
    return {"op": op, "target": target, "args": list(args)} | ({"kwargs": kwargs} if kwargs else {})


def argument(name: str) -> dict[str, Any]:
    """A graph whose argument has this name."""
    named = {"op": "placeholder", "target": name}
    nodes = [named, call("torch.relu", N), {"op": "output", "args": [{"$node": 1}]}]
    return {"graph": nodes, "run": "construct"}


BIG = 2**62
MARK = "open('{MARKER}','w')"

REFUSED: dict[str, dict[str, Any]] = {
    # Names that would be code.
    "argument-default": argument(f"x={MARK}"),
    "argument-annotation": argument(f"x: {MARK}"),
    "argument-star": argument("*x"),
    "argument-newline": argument("x):\n    import os\ndef f(y"),
    "argument-carriage-return": argument("x\rimport os"),
    "argument-line-separator": argument("x\u2028import os"),
    "argument-comment": argument("x#"),
    "argument-empty": argument(""),
    "argument-nfkc-keyword": argument("\uff49\uff46"),
    "argument-nul": argument("x\0"),
    "argument-zero-width": argument("x\u200b"),
    # Keywords, methods and text that would be.
    "keyword-injected": graph(call("torch.sum", N, **{f"dim=0, a={MARK}": 1})),
    "keyword-fullwidth": graph({**call("torch.sum", N), "kwargs": {"\uff44im": 0}}),
    "keyword-of-python": graph(call("torch.sum", N, **{"lambda": 0})),
    "method-call": graph(call(f"relu() or {MARK} or x.relu", N, op=METHOD)),
    "method-private": graph(call("_make_subclass", N, op=METHOD)),
    "method-wrapper": graph(call("__init__", N, op=METHOD)),
    "method-format": graph(call("format", "{0.__class__}", N, op=METHOD)),
    "method-of-text": graph(call("split", "a b", op=METHOD)),
    "method-with-text": graph(call("view", N, MARK, op=METHOD)),
    "text-for-number": graph(call("torch.add", N, MARK)),
    "text-for-sizes": graph(call("torch.zeros", [MARK]), run="constfold"),
    "text-for-device": graph(call("torch.zeros", [2], device=MARK), run="constfold"),
    "text-for-dtype": graph(call("torch.zeros", [2], dtype="os.system"), run="constfold"),
    "text-in-dictionary": graph(call("torch.nn.functional.pad", N, {"a": MARK})),
    "text-marker-in-equation": graph(call("torch.einsum", "ii->i  # COUNTER: 12", N)),
    "format-bomb": graph(call("operator.mod", "%1000000000d", 1), run="constfold"),
    "text-bomb": graph(call("operator.mul", "a", 2**40), run="constfold"),
    "text-joined": graph(call("operator.add", "os", ".system"), run="constfold"),
    "text-as-number": graph(call("builtins.int", "9" * 5000), run="constfold"),
    "text-as-list": graph(call("builtins.list", "a" * 100), run="constfold"),
    # Ways to other targets.
    "walk-in-torch": graph(call("torch.nn.functional.torch.load", "{EVIL_PT}")),
    "walk-in-numpy": graph(call("torch._numpy.os.system", "touch {MARKER}")),
    "walk-in-operator": graph(call("operator.__loader__.load_module", "os")),
    "attrgetter": graph(call("operator.attrgetter", "__class__"), run="constfold"),
    "methodcaller": graph(call("operator.methodcaller", "share_memory_"), run="constfold"),
    "getattr-by-node": graph(
        call("operator.getitem", ["__class__"], 0), call("builtins.getattr", N, {"$node": 1})
    ),
    "getattr-by-keyword": graph(call("builtins.getattr", N, name="__class__")),
    "getattr-fullwidth": graph(call("builtins.getattr", N, "\uff33hape")),
    "getattr-default": graph(call("builtins.getattr", N, "shape", None)),
    "a-sort-with-a-key": graph(call("builtins.sorted", N, key={"$callable": "builtins.abs"})),
    "a-maximum-with-a-key": graph(call("builtins.max", N, key={"$callable": "builtins.abs"})),
    "a-wrapped-text": graph(call("wrap", MARK, N)),
    "too-many-arguments": graph(call("torch.nn.functional.relu", N, True, 1)),
    "a-generator": graph(call("torch.rand", [2], generator=1), run="constfold"),
    "a-callable-where-none-is": graph(call("torch.add", N, {"$callable": "builtins.abs"})),
    "numpy-file": graph(call("torch._numpy.load", "{EVIL_PICKLE}"), run="constfold"),
    "save": graph(call("torch.save", N, "{MARKER}")),
    "a-reference-to-what-comes": graph(call("torch.neg", {"$node": 2}), call("torch.neg", N)),
    "a-reference-far-back": graph(call("torch.neg", {"$node": -1})),
    "an-output-inside": graph({"op": "output", "args": [N]}, call("torch.neg", N)),
}

# Bombs that nothing but running would show: each ends as a refusal or as a graph, in time, and
# the server is as before.
CONTAINED: dict[str, dict[str, Any]] = {
    "power": graph(call("operator.pow", 10, 10**10), run="constfold"),
    "power-of-builtins": graph(call("builtins.pow", 7, 10**12), run="constfold"),
    "shift": graph(call("operator.lshift", 1, 2**40), run="constfold"),
    "shift-forward": graph(call("operator.lshift", 1, 2**40)),
    "range-as-list": graph(call("builtins.range", BIG), call("builtins.list", {"$node": 1})),
    "range-summed": graph(call("builtins.range", 2**40), call("builtins.sum", {"$node": 1})),
    "list-repeated": graph(call("operator.mul", [0, 0], 2**40)),
    "list-repeated-folded": graph(call("operator.mul", [0, 0], 2**40), run="constfold"),
    "doubling": graph(
        call("operator.lshift", 1, 2**20),
        *[call("operator.mul", {"$node": i}, {"$node": i}) for i in range(1, 25)],
    ),
    "ones": graph(call("torch.ones", [2**40]), run="constfold"),
    "ones-forward": graph(call("torch.ones", [2**40])),
    "repeated": graph(
        call("torch.ones", [4]), call("repeat", {"$node": 1}, 2**36, op=METHOD), run="constfold"
    ),
    "expanded": graph(
        call("torch.ones", [1]), call("expand", {"$node": 1}, BIG, op=METHOD),
        call("contiguous", {"$node": 2}, op=METHOD), run="constfold",
    ),
    "eye": graph(call("torch.eye", 2**31), run="constfold"),
    "arange": graph(call("torch.arange", BIG), run="constfold"),
    "one-hot": graph(
        call("torch.ones", [4], dtype={"$dtype": "int64"}),
        call("torch.nn.functional.one_hot", {"$node": 1}, 2**40), run="constfold",
    ),
    "meshgrid": graph(
        call("torch.ones", [2**12]),
        call("torch.meshgrid", {"$node": 1}, {"$node": 1}, {"$node": 1}, indexing="ij"),
        run="constfold",
    ),
    "outer": graph(
        call("torch.ones", [2**18]), call("torch.outer", {"$node": 1}, {"$node": 1}),
        run="constfold",
    ),
    "matrix-power": graph(
        call("torch.ones", [512, 512]), call("torch.matrix_power", {"$node": 1}, BIG),
        run="constfold",
    ),
    "strides-outside": graph(
        call("torch.ones", [4]), call("torch.as_strided", {"$node": 1}, [2**40], [1], 2**40),
        run="constfold",
    ),
    "index-outside": graph(
        call("torch.ones", [4]), call("torch.full", [2], 2**40, dtype={"$dtype": "int64"}),
        call("torch.index_select", {"$node": 1}, 0, {"$node": 2}), run="constfold",
    ),
    "gather-outside": graph(
        call("torch.ones", [4]), call("torch.full", [2], -(2**40), dtype={"$dtype": "int64"}),
        call("torch.gather", {"$node": 1}, 0, {"$node": 2}), run="constfold",
    ),
    "unpool-outside": graph(
        call("torch.ones", [1, 1, 2, 2]),
        call("torch.full", [1, 1, 2, 2], 2**40, dtype={"$dtype": "int64"}),
        call("torch.nn.functional.max_unpool2d", {"$node": 1}, {"$node": 2}, 2), run="constfold",
    ),
    "embedding-outside": graph(
        call("torch.ones", [4, 4]), call("torch.full", [2], 2**40, dtype={"$dtype": "int64"}),
        call("torch.nn.functional.embedding", {"$node": 2}, {"$node": 1}), run="constfold",
    ),
    "window": graph(call("torch.hann_window", 2**40), run="constfold"),
    "combinations": graph(
        call("torch.ones", [2000]), call("torch.combinations", {"$node": 1}, 6), run="constfold"
    ),
    "stft": graph(
        call("torch.ones", [2**20]),
        call("torch.stft", {"$node": 1}, 2**19, 1, return_complex=True), run="constfold",
    ),
    # What is folded has an operator behind it, so that it does not escape and is computed.
    "folded-view-outside": graph(
        call("torch.ones", [4]), call("torch.ops.aten._reshape_alias_copy.default", {"$node": 1}, [2], [10**9]),
        call("torch.neg", {"$node": 2}), call("torch.add", N, {"$node": 3}), run="constfold",
    ),
    "folded-index-outside": graph(
        call("torch.ones", [4]), call("torch.full", [2], 2**40, dtype={"$dtype": "int64"}),
        call("torch.ops.aten.embedding_dense_backward.default", {"$node": 1}, {"$node": 2}, 4, -1, False),
        call("torch.neg", {"$node": 3}), call("torch.add", N, {"$node": 4}), run="constfold",
    ),
    "folded-lowest-integer": graph(
        call("torch.full", [2], -(2**63), dtype={"$dtype": "int64"}),
        call("torch.floor_divide", {"$node": 1}, -1),
        call("torch.neg", {"$node": 2}), call("torch.add", N, {"$node": 3}), run="constfold",
    ),
    "folded-fresh-memory": graph(
        call("torch.empty", [65536]), call("torch.neg", {"$node": 1}),
        call("torch.neg", {"$node": 2}), call("torch.add", N, {"$node": 3}), run="constfold",
    ),
}  # fmt: skip
