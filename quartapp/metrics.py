"""What is counted. The launcher names a folder in which the workers' numbers come together."""

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

# The library's own name.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST

REQUESTS = Counter("quartapp_requests_total", "Answers", ["method", "status"])
SECONDS = Histogram("quartapp_request_seconds", "Time to the answer, in seconds", ["method"])
SOCKETS = Gauge("quartapp_sockets", "Open sockets", multiprocess_mode="livesum")
CLOSES = Counter("quartapp_socket_closes_total", "Sockets that the server closed", ["code"])
STREAM = Gauge("quartapp_change_streams", "Open change streams", multiprocess_mode="livesum")
STREAM_LOSSES = Counter("quartapp_change_stream_losses_total", "Change streams that broke")
REMEMBERED = Counter("quartapp_principals_remembered_total", "Requests without a question")
BARRIER_SECONDS = Histogram(
    "quartapp_barrier_seconds",
    "From the commit of a revocation until it is known everywhere, in seconds",
    buckets=(0.003, 0.005, 0.01, 0.015, 0.03, 0.1, 0.5, 1, 2, 3),
)
MAILS = Counter("quartapp_mails_total", "Letters, by what became of them", ["outcome"])
LAG = Histogram(
    "quartapp_loop_lag_seconds",
    "How late the event loop comes to what is due, in seconds",
    buckets=(0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
)
SETTLED = Counter("quartapp_judgements_total", "Times that sessions were judged anew")


def share(folder: str) -> None:
    """From now on what is counted here comes together in the folder with what others count.

    The library decides when it is imported where its numbers are kept, and a worker is forked from
    a process that has imported it: so they are made anew. Call it before anything is counted.
    """
    module = sys.modules[__name__]
    for number in vars(module).values():
        if isinstance(number, Counter | Gauge | Histogram):
            REGISTRY.unregister(number)
    os.environ[FOLDER] = folder
    values.ValueClass = values.get_value_class()
    importlib.reload(module)


def exposition() -> bytes:
    """The numbers of all workers in the text format of Prometheus."""
    if not os.environ.get(FOLDER):
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return generate_latest(registry)


def forget(pid: int, folder: str | None) -> None:
    """Takes a dead worker's open sockets out of the sum."""
    if folder:
        multiprocess.mark_process_dead(pid, folder)
