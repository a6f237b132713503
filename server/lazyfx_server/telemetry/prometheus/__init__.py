"""Events and levels as Prometheus metrics. The only package that imports prometheus_client.

Every metric is described in docs/metrics.md. Labels take a bounded set of
values, all of which exist from the start with the value 0, so that rate() sees the first
increase; anything else is counted as "other".
"""

from prometheus_client import CollectorRegistry

from lazyfx_server.telemetry.prometheus.prometheus_observer import (
    PrometheusObserver,
    export_levels,
    exposition,
)

__all__ = ["CollectorRegistry", "PrometheusObserver", "export_levels", "exposition"]
