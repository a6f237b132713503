"""Refuses recurrent layers over packed batches, on real and on fake tensors.

Such a batch has the batch sizes of its steps as values of a tensor. torch reads the first one
without checking that there is one, and crashes the process if there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from lazyfx_server.passes.analysis.walk import target_name

# Position of the argument that is a tensor for a packed batch, and otherwise a list:
# (input, hx, params, ...) and (data, batch_sizes, hx, params, ...).
_PLACES: Final = {
    **dict.fromkeys(("gru", "rnn_relu", "rnn_tanh", "quantized_gru"), 2),
    **dict.fromkeys(("lstm", "quantized_lstm"), 1),
}


class PackedBatchError(RuntimeError):
    """A recurrent layer was called with a packed batch."""


def check_not_packed(target: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a recurrent layer over a packed batch.

    Args:
        target: A callable, or the name of a method.
        args: What it would be called with.
        kwargs: As `args`.

    Raises:
        PackedBatchError: The call is refused.
    """
    place = _PLACES.get(target_name(target))
    if place is None:
        return
    packed = len(args) > place and isinstance(args[place], torch.Tensor)
    if packed or "batch_sizes" in kwargs or "data" in kwargs:
        raise PackedBatchError(
            "recurrent layers over packed batches cannot be evaluated on the server"
        )
