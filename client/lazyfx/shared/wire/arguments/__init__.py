"""The kinds of arguments: how each is written, read and checked, and what is inside it.

To support another one, add a row to the tuple at the end of one of the modules here.
"""

from lazyfx.shared.wire.arguments import (
    argument_kind,
    container_kinds,
    reference_kinds,
    scalar_kinds,
)

argument_kind.register(scalar_kinds.SCALARS)
argument_kind.register(reference_kinds.REFERENCES)
argument_kind.register(container_kinds.CONTAINERS)
