"""What to do about a difference between the graphs of two ranks."""

from __future__ import annotations

from lazyfx.explaining import Difference

_SHAPES = ("value.shape", "value.stride", "value.offset")


def advice_on(difference: Difference, ranks: tuple[int, int]) -> str:
    """One sentence about a difference between two ranks' graphs."""
    if difference.kind != "changed":
        return (
            "ranks run different code here: move the branch out of the compiled region, or accept "
            "one compile for each of its sides"
        )
    field = difference.field
    if field.startswith(_SHAPES):
        return (
            "sizes depend on the rank: give every rank batches and shards of the same size "
            "(drop_last=True, padding), or mark the size as dynamic (torch._dynamo.mark_dynamic)"
        )
    if field.startswith(("value.dtype", "value.requires_grad", "value.device", "value.layout")):
        return "prepare the model and the batches in the same way on every rank"
    if field == "target":
        return "ranks call different functions here: move the choice out of the compiled region"
    if difference.before.startswith(("'", '"')) or difference.after.startswith(("'", '"')):
        return (
            "a text that depends on the rank is part of the graph: write it outside of the "
            "compiled region"
        )
    if (difference.before, difference.after) == tuple(f"{rank} (int)" for rank in ranks):
        return (
            "this is the rank itself: pass it as a tensor, for instance as a buffer of the module, "
            "or use it outside of the compiled region"
        )
    return (
        "a number that depends on the rank is a constant of the graph: pass it as a tensor, or "
        "compute it outside of the compiled region"
    )
