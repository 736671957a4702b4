"""Prometheus metrics. Workers of one server write theirs to a shared folder, to be summed."""

import importlib
import os
import sys

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    values,
)

# The environment variable by which prometheus_client finds the shared folder.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST

REQUESTS = Counter("quartapp_requests_total", "Answers", ["method", "status"])
REQUEST_SECONDS = Histogram(
    "quartapp_request_seconds", "Time to the answer, in seconds", ["method"]
)
SOCKETS = Gauge("quartapp_sockets", "Open sockets", multiprocess_mode="livesum")
SOCKET_CLOSES = Counter("quartapp_socket_closes_total", "Sockets that the server closed", ["code"])
OPEN_STREAMS = Gauge("quartapp_change_streams", "Open change streams", multiprocess_mode="livesum")
STREAM_LOSSES = Counter("quartapp_change_stream_losses_total", "Change streams that broke")
CACHE_HITS = Counter(
    "quartapp_principals_remembered_total", "Requests answered from the principal cache"
)
BARRIER_SECONDS = Histogram(
    "quartapp_barrier_seconds",
    "From the commit of a revocation until all workers have acknowledged it, in seconds",
    buckets=(0.003, 0.005, 0.01, 0.015, 0.03, 0.1, 0.5, 1, 2, 3),
)
MAILS = Counter("quartapp_mails_total", "Emails, by outcome", ["outcome"])
LOOP_LAG = Histogram(
    "quartapp_loop_lag_seconds",
    "Delay of the event loop, in seconds",
    buckets=(0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
)
EVALUATIONS = Counter("quartapp_judgements_total", "Evaluations of sessions after changes")


def use_shared_folder(folder: str) -> None:
    """Keep this process's metrics in the folder from now on, where `exposition` sums them up.

    prometheus_client chooses the place when it is imported, and a worker is forked from a process
    that has imported it. So this sets the environment variable and creates all metrics again. Call
    it before anything is counted.
    """
    module = sys.modules[__name__]
    for metric in vars(module).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            REGISTRY.unregister(metric)
    os.environ[FOLDER] = folder
    values.ValueClass = values.get_value_class()
    importlib.reload(module)


def exposition() -> bytes:
    """Return the metrics in Prometheus' text format: the sums over all workers if they share a
    folder, else those of this process alone."""
    if not os.environ.get(FOLDER):
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return generate_latest(registry)


def remove_dead_worker(pid: int, folder: str | None) -> None:
    """Remove a dead worker's gauges, such as its open sockets, from the sums.

    Does nothing without a folder.
    """
    if folder:
        multiprocess.mark_process_dead(pid, folder)
