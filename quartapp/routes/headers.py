"""The headers of every answer, errors included (ASVS 3.4, 14.3.2)."""

from quart import Quart, Response, request

from quartapp.settings import Settings

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "object-src 'none'",
        "frame-ancestors 'none'",
    )
)
ALWAYS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def init_app(app: Quart, settings: Settings) -> None:
    @app.after_request
    async def harden(response: Response) -> Response:
        for name, value in ALWAYS.items():
            response.headers[name] = value
        if "token" in (request.view_args or {}):
            # The address opens something: it is told to nobody, not even to ourselves.
            response.headers["Referrer-Policy"] = "no-referrer"
        if settings.production:
            response.headers["Strict-Transport-Security"] = "max-age=63072000; includeSubDomains"
        if request.endpoint == "static" and response.status_code == 200 and "v" in request.args:
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        elif request.endpoint == "static":
            response.headers["Cache-Control"] = "no-cache"
        else:
            # Pages differ by who looks, and each may be about somebody.
            response.headers["Cache-Control"] = "no-store"
            response.vary.update(("Cookie", "Origin", "Sec-Fetch-Site"))
        return response
