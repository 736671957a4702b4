"""Ambiguous HTTP messages are refused, so that no request can be smuggled (ASVS 4.2.1)."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest

from tests.people import Server

HOST = "Host: localhost"
TO_HTTP_2 = [
    "Connection: Upgrade, HTTP2-Settings, close",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABk",
]
SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
AMBIGUOUS = {
    "two lengths, one of them 0": ["Content-Length: 0", f"Content-Length: {len(SMUGGLED)}"],
    "a length and chunks": [f"Content-Length: {len(SMUGGLED)}", "Transfer-Encoding: chunked"],
    "chunked twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "chunked and identity": ["Transfer-Encoding: chunked, identity"],
    "chunked after a control character": ["Transfer-Encoding: \x0bchunked"],
    "a length with a sign": ["Content-Length: +5"],
    "a space before the colon": ["Content-Length : 5"],
    "two hosts": ["Host: elsewhere"],
    "two different lengths": ["Content-Length: 5", "Content-Length: 6"],
}


async def send_raw(url: str, head: list[str], body: str = "") -> bytes:
    """Send this on one connection, and return all that is answered."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write("\r\n".join([*head, "", body]).encode("latin-1"))
        writer.write_eof()
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("kind", AMBIGUOUS)
async def test_a_request_of_ambiguous_length_is_refused_with_all_after_it(
    server: Server, kind: str
) -> None:
    head = ["POST /login HTTP/1.1", HOST, *AMBIGUOUS[kind]]
    response = await send_raw(server.url, head, f"0\r\n\r\n{SMUGGLED}")
    assert response.count(b"HTTP/1.1 ") <= 1, response
    assert response.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")), response


async def test_an_invalid_chunk_ends_the_connection(server: Server) -> None:
    head = ["POST /login HTTP/1.1", HOST, "Transfer-Encoding: chunked"]
    response = await send_raw(server.url, head, f"zz\r\n{SMUGGLED}")
    assert response.count(b"HTTP/1.1 ") <= 1, response
    assert b" 404" not in response


@pytest.mark.parametrize("path", ["/livez", "/ws"])
async def test_an_upgrade_to_cleartext_http_2_is_refused(server: Server, path: str) -> None:
    response = await send_raw(server.url, [f"GET {path} HTTP/1.1", HOST, *TO_HTTP_2])
    assert response.startswith(b"HTTP/1.1 ")
    assert b" 101 " not in response.split(b"\r\n")[0]


async def test_a_connection_that_starts_with_http_2_is_refused(server: Server) -> None:
    response = await send_raw(server.url, ["PRI * HTTP/2.0"], "SM\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 400"), response


@pytest.mark.parametrize(("pieces", "status"), [(90, b"422"), (2_000, b"413")])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_body_of_too_many_chunks_is_refused(
    server: Server, method: str, pieces: int, status: bytes
) -> None:
    head = [f"{method} /login HTTP/1.1", HOST, "Origin: http://localhost", "Connection: close"]
    head += ["Transfer-Encoding: chunked", "Content-Type: application/x-www-form-urlencoded"]
    response = await send_raw(server.url, head, "1\r\na\r\n" * pieces + "0\r\n\r\n")
    if method == "GET" and status == b"422":
        status = b"200"
    assert response.startswith(b"HTTP/1.1 " + status), response[:200]


async def test_too_many_headers_are_refused(server: Server) -> None:
    response = await send_raw(server.url, ["GET /login HTTP/1.1", HOST, *["a:b"] * 101], "")
    assert response.startswith(b"HTTP/1.1 431"), response[:200]
