"""The four stacks as running servers with signed-in users."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from bench.crowd import House
from bench.peers import environment
from bench.peers.load import Answer, Connection, get
from quartapp.db.embedded import DataFolder
from quartapp.models import Role
from quartapp.policy import MEMBER
from tests.people import http_client, until

PAGE = "/account/password"
WHO = "/api/me"
USERS = 16
PASSWORD = "correct horse battery staple"
GUNICORN = (
    *("gunicorn", "--workers", "1", "--worker-class", "gthread", "--threads", "4"),
    "--no-control-socket",
)
UVICORN = ("uvicorn", "--no-access-log", "--log-level", "warning")


@dataclass(frozen=True)
class Stack:
    """A running server: its users' names and cookies, and the processes that do its work."""

    name: str
    url: str
    usernames: list[str]
    cookies: list[str]
    processes: Callable[[], list[int]]

    def requests(self, path: str) -> list[bytes]:
        return [get(self.url, path, cookie) for cookie in self.cookies]

    def check(self, number: int, answer: Answer) -> None:
        """Raise AssertionError if the answer is not 200, or not about the user of this number."""
        wanted = f'"{self.usernames[number]}"'.encode()
        assert answer.head.startswith(b"HTTP/1.1 200 "), (self.name, answer)
        assert wanted in answer.body, (self.name, answer)

    async def check_all(self, page: str) -> None:
        """Check the answers to all users in full: the JSON, and the page, which must have the same
        visible text and the same form fields as `page`, that of the first user of another stack.

        Raises AssertionError.
        """
        connection = await Connection.open(self.url)
        for name, cookie in zip(self.usernames, self.cookies, strict=True):
            who = await connection.ask(get(self.url, WHO, cookie))
            said = who.json()
            wanted = {"username": name, "roles": ["member"], "permissions": ["posts.write"]}
            assert who.status == 200, who
            assert {key: said.get(key) for key in wanted} == wanted, (self.name, said)
            html = (await connection.ask(get(self.url, PAGE, cookie))).body.decode()
            assert content(html) == content(page), (self.name, html)
        refused = await connection.ask(get(self.url, WHO, ""))
        assert refused.status in (302, 401), refused
        connection.close()

    def cpu_seconds(self) -> float:
        """Return the CPU time that the processes have used so far."""
        return cpu_seconds(self.processes())


def cpu_seconds(processes: list[int]) -> float:
    """Return the CPU time that the processes have used so far; 0 where /proc does not exist."""
    seconds = 0.0
    for process in processes:
        with suppress(FileNotFoundError):
            words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def content(html: str) -> list[str]:
    """Return the links, form fields and words of a page, without the user's name and the tokens."""
    html = re.sub(r'<input type="hidden"[^>]*>', "", html)
    html = re.sub(r"\bpeer\d+", "peer", html[html.index("<body") :])
    attributes = re.findall(r'\b(?:name|href|action|type)="[^"]*"', html)
    return attributes + re.sub(r"<[^>]*>", " ", html).split()


async def quartapp(house: House) -> Stack:
    """Create the users of quartapp in the running server, with one session each."""
    member = await Role.named(MEMBER)
    assert member is not None
    people = await house.people("peer", USERS, role=member)
    cookies = [person.cookies[0] for person in people]
    return Stack(
        "quartapp",
        house.server.url,
        [person.username for person in people],
        cookies,
        lambda: list(house.processes().values()),
    )


@asynccontextmanager
async def _running(
    name: str, command: tuple[str, ...], form: tuple[str, str, str], data: Path
) -> AsyncIterator[Stack]:
    """Run the command in the peers' environment until the context ends, with the mongod of the data
    folder, and sign in all users through the form: its path, the field and the login."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    path, field, login = form
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *(environment.PYTHON, "-m", *(word.format(port=port) for word in command)),
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "PEERS_MONGODB_URI": DataFolder(data).uri,
                "PEERS_PASSWORD": PASSWORD,
                "PEERS_SECRET_KEY": secrets.token_hex(32),
            },
        )
        try:

            async def answers() -> bool:
                assert process.returncode is None, f"{name} has ended"
                try:
                    (await Connection.open(url)).close()
                except OSError:
                    return False
                return True

            await until(answers)
            names = [f"peer{number}" for number in range(USERS)]
            cookies = [
                await _sign_in(url, path, {field: login.format(name=each)}) for each in names
            ]
            yield Stack(name, url, names, cookies, lambda: _family(process.pid))
        except BaseException:
            log.seek(0)
            print(log.read().decode())
            raise
        finally:
            process.terminate()
            await process.wait()


classic = partial(
    _running,
    "classic",
    (*GUNICORN, "bench.peers.apps.classic:app", "--bind", "127.0.0.1:{port}"),
    ("/login", "username", "{name}"),
)
flask_security = partial(
    _running,
    "Flask-Security",
    (*GUNICORN, "bench.peers.apps.with_flask_security:app", "--bind", "127.0.0.1:{port}"),
    ("/login", "email", "{name}@example.org"),
)
fastapi_users = partial(
    _running,
    "fastapi-users",
    (*UVICORN, "bench.peers.apps.with_fastapi_users:app", "--port", "{port}"),
    ("/auth/login", "username", "{name}@example.org"),
)


async def _sign_in(url: str, path: str, fields: dict[str, Any]) -> str:
    """Sign in through the form and return the Cookie header of a request to the page."""
    async with http_client(url) as client:
        page = (await client.get(path)).text
        if found := re.search(r'name="csrf_token"[^>]* value="([^"]+)"', page):
            fields["csrf_token"] = found[1]
        answer = await client.post(path, data={**fields, "password": PASSWORD})
        assert answer.status_code in (204, 302), (answer.status_code, answer.text)
        await _open_page(client)
        # Also those for HTTPS only, which the client does not send here.
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in client.cookies.jar)


async def _open_page(client: httpx.AsyncClient) -> None:
    """Open the page once: Flask-WTF adds a CSRF token to the session cookie of its first form."""
    await client.get(PAGE)


def _family(process: int) -> list[int]:
    """Return the process and its children."""
    children = Path(f"/proc/{process}/task/{process}/children")
    with suppress(FileNotFoundError):
        return [process, *map(int, children.read_text().split())]
    return [process]
