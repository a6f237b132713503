"""What counts the events of a server."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version

import torch

from lazyfx_server.assembling.pass_tables import PassTables
from lazyfx_server.compiling.ledger_file import LedgerFile
from lazyfx_server.compiling.server_ledger import ServerLedger
from lazyfx_server.execution import RestartReason
from lazyfx_server.metric_labels import label_values
from lazyfx_server.settings.model import Settings
from lazyfx_server.telemetry import DeferredObserver, Observers, WorkerRestarted
from lazyfx_server.telemetry.labels import DefinedElsewhere
from lazyfx_server.telemetry.prometheus import CollectorRegistry, PrometheusObserver


@dataclass(frozen=True)
class Counts:
    """What counts events.

    Attributes:
        ledger: The counts that GetStats returns.
        metrics: The metrics of Prometheus.
        labels: Values of their labels.
        observer: Adds events to both.
        deferred: The same a moment later, for events of requests.
    """

    ledger: ServerLedger
    metrics: CollectorRegistry
    labels: DefinedElsewhere
    observer: Observers
    deferred: DeferredObserver

    @classmethod
    def of(cls, settings: Settings, tables: PassTables) -> Counts:
        """Begin with the counts of earlier runs."""
        ledger = ServerLedger(ledger_file(settings))
        metrics = CollectorRegistry()
        versions = {
            "version": version("lazyfx"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        labels = label_values(tables.registry.names())
        exported = PrometheusObserver(metrics, labels, versions, ledger.restored)
        observer = Observers(ledger, exported)
        return cls(ledger, metrics, labels, observer, DeferredObserver(observer))

    def count_restart(self, reason: RestartReason) -> None:
        """Count a worker that was replaced."""
        self.observer.observe(WorkerRestarted(reason))


def ledger_file(settings: Settings) -> LedgerFile | None:
    """The file of the ledger; None without a store on disk."""
    folder = settings.store.store_path
    if folder is None:
        return None
    return LedgerFile(folder / ".ledger" / "counts.json")
