"""The zoo: real architectures with random weights, captured in every way torch has.

Each capture goes through the wire and comes back; `python -m zoo` prints a table of what
happened. The configurations are tiny, the kinds of layers are all there.
"""

from zoo import audio, multimodal, series, sparse_text, text, vision
from zoo.architecture import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    entry.name: entry
    for room in (text, sparse_text, vision, audio, multimodal, series)
    for entry in room.ALL
}
