"""The zoo: real architectures with random weights, captured in every way torch has.

Each capture goes through the wire and comes back; `python -m zoo` prints a table of what
happened. The configurations are tiny, the kinds of layers are all there.
"""

from zoo import audio, multimodal, text, vision
from zoo.architecture import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    entry.name: entry for entry in (*text.ALL, *vision.ALL, *audio.ALL, *multimodal.ALL)
}
