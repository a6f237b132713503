"""The zoo: real architectures with random weights, captured in every way torch has.

Each capture is encoded and decoded; `python -m zoo` prints a table of the results. The
configurations are tiny, but have every kind of layer.
"""

from zoo import audio, multimodal, series, sparse_text, text, vision
from zoo.architecture import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    entry.name: entry
    for room in (text, sparse_text, vision, audio, multimodal, series)
    for entry in room.ALL
}
