"""Send the costliest known input for each anonymous route, over eight connections.

`python -m bench.flood --costly` sends each kind of input to one worker for some seconds, with
password hashes at their real cost. Each request comes from another address, so no rate limit
applies. Meanwhile a separate process requests /livez, and an administrator ends the sessions of one
user after the other. The exit status is 1 if the 99th percentile of /livez is over 50 ms or a
revocation takes more than 300 ms.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from urllib.parse import urlencode

from bench.crowd import House, Someone, house, percentile
from quartapp.models import Role
from quartapp.policy import MEMBER
from tests.conftest import PASSWORD
from tests.people import Person

CONNECTIONS = 8
LIVEZ_GOAL, REVOCATION_GOAL = 0.050, 0.300
PAUSE = 0.01
# zxcvbn tries each symbol as a letter. NFC normalisation sorts each run of combining marks.
SYMBOLS = "4z8({$<3689!1|70$5+%2!@8({[<l6&9!1|70b|+4@8({[<36&9!1|70$5+%2"
MARKS = "a" + "\u0315\u0300" * 15_400

Build = Callable[[int], bytes]


class Costly:
    """Builds the requests, each from another address and for another username."""

    def __init__(self, url: str, cookies: str, token: str) -> None:
        self._host = url.removeprefix("http://")
        self._head = {"Host": self._host, "Origin": url, "Cookie": cookies}
        self._token = token

    def cases(self) -> dict[str, Build | None]:
        """Return a function that builds a request for each kind of input, by its name.

        None means no requests: the values of the idle machine.
        """
        chunks = b"1\r\na\r\n" * 64_000 + b"0\r\n\r\n"
        part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
        multipart = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = {"clientDataJSON": "A" * 9000, "authenticatorData": "A" * 9000, "signature": "AA"}
        credential = {"id": "A" * 9000, "rawId": "A" * 9000, "type": "public-key"}
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        upgrade["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
        return {
            "nothing": None,
            "GET /login": lambda n: self._get("/login"),
            "sign-in": lambda n: self._form("/login", login=f"u{n}", password="wrong"),
            "sign-in, marks": self._raw("/login", "login=u&password=", MARKS.encode()),
            "sign-in, name of marks": self._raw("/login", "password=x&login=", MARKS.encode()),
            "register, symbols": self._registering(SYMBOLS),
            "register, 256 symbols": self._registering((SYMBOLS * 5)[:256]),
            "register, weak": self._registering("p4$$w0rd{[<(p4$$w0rd"),
            "register, long address": self._raw("/register", "email=", b"a@" + b"a." * 31_000),
            "forgot": lambda n: self._form("/forgot", email=f"u{n}@example.org"),
            "forgot, dots": lambda n: self._form("/forgot", email=f"{n}@" + "a." * 120 + "!"),
            "second step": lambda n: self._form("/login/factor", code="1" * 60_000),
            "passkey": lambda n: self._form(
                "/login/passkey", credential=json.dumps({**credential, "response": answer})
            ),
            "fields": self._raw("/login", "", b"a&" * 32_000),
            "percent signs": self._raw("/login", "a=", b"+%" * 31_000),
            "multipart": lambda n: self._post(n, "/login", part + b"\r\n-" * 20_000, multipart),
            "chunks": lambda n: self._chunked(n, "/login", chunks),
            "parameters": lambda n: self._get("/login?" + "a&" * 7_500),
            "next": lambda n: self._get("/login?next=/" + "%2f" * 2_600),
            "cookies": lambda n: self._get("/login", Cookie="a=b;" * 3_900),
            "quoted cookie": lambda n: self._get("/login", Cookie='a="' + "\\134" * 3_500 + '"'),
            "headers": lambda n: self._get("/login", **{f"A{i}": "" for i in range(2_500)}),
            "ranges": lambda n: self._get("/static/app.css", Range=f"bytes={'0-0,' * 3_500}0-0"),
            "no page": lambda n: self._get("/" + "a/" * 4_000),
            "handshake": lambda n: self._get("/ws", **upgrade) + b"\x81\x80aaaa" * 8_000,
            "garbage": lambda n: b"\0\xff" * 30_000,
        }

    def _registering(self, password: str) -> Build:
        def build(n: int) -> bytes:
            fields = {"username": f"r{os.getpid()}-{n}", "email": f"r{os.getpid()}-{n}@example.org"}
            # Both fields have one password: if they differed, it would not be scored.
            return self._form("/register", **fields, password=password, confirm=password)

        return build

    def _raw(self, path: str, start: str, rest: bytes) -> Build:
        body = f"{urlencode({'csrf_token': self._token})}&{start}".encode() + rest
        return lambda n: self._post(n, path, body)

    def _form(self, path: str, **fields: str) -> bytes:
        body = urlencode({"csrf_token": self._token, **fields}).encode()
        return self._post(hash(body), path, body)

    def _post(self, n: int, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        lines = {**kind, **_from(n), "Content-Length": str(len(body)), **(headers or {})}
        return self._request("POST", path, lines) + body

    def _chunked(self, n: int, path: str, body: bytes) -> bytes:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        lines = {**kind, **_from(n), "Transfer-Encoding": "chunked"}
        return self._request("POST", path, lines) + body

    def _get(self, path: str, **headers: str) -> bytes:
        return self._request("GET", path, headers)

    def _request(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        lines = {"Connection": "close", **self._head, **headers}
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode()


def _from(n: int) -> dict[str, str]:
    return {"X-Forwarded-For": f"203.{n % 200}.{n // 200 % 200}.{n // 40_000 % 200}"}


async def attack(name: str, url: str, cookies: str, token: str) -> None:
    """Run the attacking process: send until standard input has a line, then print how often each
    status was received, as JSON."""
    build = Costly(url, cookies, token).cases()[name]
    host, port = url.removeprefix("http://").split(":")
    told = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    answers: Counter[str] = Counter()
    numbers = count()

    async def send() -> None:
        while build and not told.done():
            request = build(next(numbers))
            with suppress(ConnectionError):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(request)
                line = (await reader.readline()).split()
                answers[line[1].decode() if len(line) > 1 else "closed"] += 1
                await reader.read()
                writer.close()

    print("ready", flush=True)
    await asyncio.gather(told, *(send() for _ in range(CONNECTIONS)))
    print(json.dumps(answers))


async def ask(url: str) -> None:
    """Run the probing process: request /livez until standard input has a line, then print the times
    in seconds, as JSON."""
    host, port = url.removeprefix("http://").split(":")
    told = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    reader, writer = await asyncio.open_connection(host, int(port))
    request = f"GET /livez HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    took: list[float] = []
    print("ready", flush=True)
    while not told.done():
        began = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        took.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE)
    print(json.dumps(took))


async def _started(*words: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.flood", *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    assert await process.stdout.readline() == b"ready\n"
    return process


async def _stopped(process: asyncio.subprocess.Process) -> str:
    out, _ = await process.communicate(b"\n")
    return out.decode()


async def measure(seconds: float, revocations: int, cost: int, only: str) -> bool:
    """Print a row for each kind of input whose name contains `only`; return whether all goals were
    met."""
    proxies = {"TRUSTED_PROXIES": '["127.0.0.0/8"]', "BCRYPT_COST": str(cost)}
    async with house(1, **proxies) as home, Person(home.server.url, "x", PASSWORD) as stranger:
        url, token = home.server.url, await stranger.csrf_token("/login")
        cookies = stranger.cookies()
        names = [name for name in Costly(url, cookies, token).cases() if only in name]
        role = await Role.named(MEMBER)
        assert role
        victims = iter(await home.people("v", len(names) * revocations, role=role))
        print(f"\n{'':24} livez p50    p99    max   revocation p50    max   answers")
        met = True
        for name in names:
            attacker = await _started("--attack", name, url, cookies, token)
            prober = await _started("--livez", url)
            took = await _revoke(home, victims, revocations, seconds)
            livez = json.loads(await _stopped(prober))
            answers = json.loads(await _stopped(attacker))
            p99, longest = percentile(livez, 99), max(took)
            good = p99 < LIVEZ_GOAL and longest < REVOCATION_GOAL
            met = met and good
            print(
                f"{name:24} {_ms(percentile(livez, 50))} {_ms(p99)} {_ms(max(livez))} "
                f"   {_ms(percentile(took, 50))} {_ms(longest)}   {answers}"
                f"{'' if good else '  <- over the goal'}",
                flush=True,
            )
    return met


async def _revoke(
    home: House, victims: Iterator[Someone], revocations: int, seconds: float
) -> list[float]:
    """End the sessions of one user after the other, spread over `seconds`.

    Returns the seconds that each answer took.
    """
    took = []
    async with home.caller(home.root) as root:
        token = await root.csrf_token()
        for _ in range(revocations):
            await asyncio.sleep(seconds / revocations)
            path = f"/admin/users/{next(victims).username}/sessions/end"
            began = time.perf_counter()
            status, page = await root.post(path, {"csrf_token": token})
            took.append(time.perf_counter() - began)
            assert status == 303, page
    return took


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:6.1f}"
