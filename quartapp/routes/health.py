"""For those who watch over the process. Says little, for anybody may ask."""

from typing import Any

from quart import Blueprint, current_app

from quartapp.database import Unavailable, ping

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
async def alive() -> Any:
    """200 for as long as the event loop turns."""
    return {"status": "alive"}


@blueprint.get("/readyz")
async def ready() -> Any:
    """200 when this worker should get requests: it is not leaving, the stream is open, the
    database answers."""
    running = current_app.extensions["quartapp"]
    if running.hub.draining:
        return {"status": "draining"}, 503
    if not running.feed.live:
        return {"status": "no change stream"}, 503
    try:
        await ping()
    except Unavailable:
        return {"status": "no database"}, 503
    return {"status": "ready"}
