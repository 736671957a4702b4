"""Liveness, readiness and metrics. The first two are public and reveal little."""

import hmac
from typing import Any

from quart import Blueprint, abort, request

from quartapp import metrics, servers
from quartapp.db.mongo import Unavailable, ping
from quartapp.runtime import runtime, settings

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
async def alive() -> Any:
    """Answer 200 while the event loop runs."""
    return {"status": "alive"}


@blueprint.get("/readyz")
async def ready() -> Any:
    """Answer 200 if this worker should receive requests, else 503, with a `status` in JSON.

    It should if neither the worker nor the whole server is shutting down, and the worker follows
    the change stream and reaches the database.
    """
    running = runtime()
    if running.hub.draining or _server_drains():
        return {"status": "draining"}, 503
    if not running.change_stream.live:
        return {"status": "no change stream"}, 503
    try:
        await ping()
    except Unavailable:
        return {"status": "no database"}, 503
    return {"status": "ready"}


def _server_drains() -> bool:
    """Whether the launcher is stopping and still serves requests for DRAIN_SECONDS."""
    folder = settings().neighbours
    return folder is not None and (folder / servers.DRAINING).exists()


@blueprint.get("/metrics")
async def numbers() -> Any:
    """Answer with the metrics for Prometheus.

    Requires `Authorization: Bearer METRICS_TOKEN`, and answers 404 without it. If that setting is
    empty, answers 404 in production and is public in development.
    """
    token = settings().metrics_token
    if not token and settings().production:
        abort(404)
    said = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if token and not hmac.compare_digest(said.encode(), token.get_secret_value().encode()):
        abort(404)
    return metrics.exposition(), {"Content-Type": metrics.CONTENT_TYPE}
