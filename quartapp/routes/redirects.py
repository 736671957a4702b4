"""Where an answer leads. Nothing here leads to another site (ASVS 3.7.2)."""

from urllib.parse import urlencode, urlsplit

from quart import redirect, request
from werkzeug.wrappers import Response

# Where it is listed what is to be done after "This wasn't me": pages that do it lead back there.
AFTER_STRANGER = "/account/timeline/not-me"


def see_other(path: str) -> Response:
    """303: a POST was done, look here for what came of it."""
    return redirect(path, 303)  # type: ignore[return-value]


def next_page(default: str = "/") -> str:
    """The `next` of the request if it is a page of this site, else the default."""
    return local_path(request.args.get("next", "")) or default


def local_path(target: str) -> str | None:
    """The target as a page of this site; None if a browser might read it as anything else."""
    plain = target.isprintable() and "\\" not in target and len(target) <= 2000
    if not plain or not target.startswith("/") or target.startswith("//"):
        return None
    parts = urlsplit(target)
    return target if not parts.scheme and not parts.netloc else None


def sign_in_page(*, ended: object = None) -> str:
    """The sign-in page that leads back here, and says why the session is over if it is."""
    here = request.full_path.rstrip("?") if request.method == "GET" else back()
    query = {"next": here} if here != "/" else {}
    if ended:
        query["ended"] = str(ended)
    return f"/login?{urlencode(query)}" if query else "/login"


def with_next(path: str, target: str | None = None) -> str:
    """The page, told where to go on from there: where this one was told to, if nothing is said."""
    target = next_page() if target is None else target
    return path if target == "/" else f"{path}?{urlencode({'next': target})}"


def back() -> str:
    """The page of ours that the browser comes from, where it says so."""
    # Split by hand: what is no address at all is an error to urlsplit.
    host, _, path = request.headers.get("Referer", "").partition("://")[2].partition("/")
    if host != request.host:
        return request.path
    return local_path(f"/{path}") or "/"
