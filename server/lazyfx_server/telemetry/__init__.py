"""Events, observers, and the exporters at the edge.

The exporters are imported from their own places (`prometheus`, `http`), so that
packages that only emit events load nothing more.
"""

from lazyfx_server.telemetry import events
from lazyfx_server.telemetry.deferring import DeferredObserver
from lazyfx_server.telemetry.events import *  # noqa: F403 - all of them
from lazyfx_server.telemetry.gauges import DeviceMemory, Gauges

__all__ = ["DeferredObserver", "DeviceMemory", "Gauges"]
__all__ += events.__all__
