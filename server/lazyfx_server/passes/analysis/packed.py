"""Recurrent layers over packed batches, which are not computed here, real or fake.

Such a batch brings the sizes of its steps as values of a tensor, which torch reads without a look
at how many there are: of none it reads the first, and the process ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from lazyfx_server.passes.analysis.walk import target_name

# Place of the argument that is a list without a packed batch, and a tensor with one:
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
        PackedBatchError: It is one.
    """
    place = _PLACES.get(target_name(target))
    if place is None:
        return
    packed = len(args) > place and isinstance(args[place], torch.Tensor)
    if packed or "batch_sizes" in kwargs or "data" in kwargs:
        raise PackedBatchError("recurrent layers over packed batches are not computed here")
