"""Redirects, which never lead to another site (ASVS 3.7.2)."""

from urllib.parse import urlencode, urlsplit

from quart import redirect, request
from werkzeug.wrappers import Response

# The steps that secure an account after "This wasn't me". Pages for these steps lead back there.
AFTER_STRANGER = "/account/timeline/not-me"


def see_other(path: str) -> Response:
    """Return a redirect with status 303, for the answer to a POST."""
    return redirect(path, 303)  # type: ignore[return-value]


def next_page(default: str = "/") -> str:
    """Return the parameter `next` if it is a path of this site, else the default."""
    return local_path(request.args.get("next", "")) or default


def local_path(target: str) -> str | None:
    """Return the target if all browsers read it as a path of this site, else None."""
    plain = target.isprintable() and "\\" not in target and len(target) <= 2000
    if not plain or not target.startswith("/") or target.startswith("//"):
        return None
    parts = urlsplit(target)
    return target if not parts.scheme and not parts.netloc else None


def sign_in_page(*, ended: object = None) -> str:
    """Return the URL of the sign-in page, with `next` set to this page, or for other methods than
    GET to the page that sent the request. No `next` leads to the home page.

    With `ended`, the id of a session, the page says why that session ended.
    """
    here = request.full_path.rstrip("?") if request.method == "GET" else back()
    query = {"next": here} if here != "/" else {}
    if ended:
        query["ended"] = str(ended)
    return f"/login?{urlencode(query)}" if query else "/login"


def with_next(path: str, target: str | None = None) -> str:
    """Return the path with `next` set to the target, by default the `next` of this request. For the
    home page, `next` is left out."""
    target = next_page() if target is None else target
    return path if target == "/" else f"{path}?{urlencode({'next': target})}"


def back() -> str:
    """Return path and query of the Referer if it is on this host, else the path of this request;
    "/" if browsers could read the Referer's path as another site."""
    # Split without urlsplit, which raises an error for invalid URLs.
    host, _, path = request.headers.get("Referer", "").partition("://")[2].partition("/")
    if host != request.host:
        return request.path
    return local_path(f"/{path}") or "/"


async def origin() -> str:
    """Return the parameter or form field `from`, which says from which page a user came to the page
    with a form; empty without one.

    It names one of the pages that the route knows. The form has it as a field, because the query of
    the URL is not kept when a user signs in again."""
    return str((await request.values).get("from", ""))
