"""An SMTP server with several ports, started as a module with the arguments FOLDER [CERTIFICATE].

It prints its ports as JSON: `plain`, `login`, `utf8` and, with a certificate, `starttls` and `tls`.
It writes each email and each login to a file in the folder. If the folder has a file `answers`,
each line of it is the answer that refuses one of the next emails.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from itertools import count
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

LOGIN = LoginPassword(b"quartapp", b"canary-smtp-password")


class Handler:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        answers = self._folder / "answers"
        if answers.exists():
            answer, *others = answers.read_text().splitlines()
            answers.write_text("\n".join(others)) if others else answers.unlink()
            return answer
        record = {"mail_from": envelope.mail_from, "rcpt_tos": envelope.rcpt_tos}
        self._keep(
            "envelope", **record, content=envelope.content.decode("utf-8", "surrogateescape")
        )
        return "250 taken"

    async def handle_RCPT(  # noqa: N802
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address.startswith("nobody@"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 fine"

    def authenticate(self, *args: Any) -> AuthResult:
        login: LoginPassword = args[-1]
        self._keep("login", user=login.login.decode(), password=login.password.decode())
        # Not handled: the answer is left to the library.
        return AuthResult(success=login == LOGIN, handled=False)

    def _keep(self, what: str, **record: Any) -> None:
        """Write a file that becomes visible only when it is complete."""
        name = f"{next(self._numbers):06}.{what}"
        # The glob of pathlib finds files whose name begins with a dot.
        draft = self._folder / f"{name}.draft"
        draft.write_text(json.dumps(record))
        draft.rename(self._folder / name)


async def serve(folder: Path, certificate: str | None) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "login": {"auth_required": True, "auth_require_tls": False},
        "utf8": {"enable_SMTPUTF8": True},
    }
    tls = None
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        kinds |= {"starttls": {"tls_context": tls, "require_starttls": True}, "tls": {}}
    handler, loop, ports = Handler(folder), asyncio.get_running_loop(), {}
    for kind, options in kinds.items():

        def protocol(options: dict[str, Any] = options) -> SMTP:
            authenticator = handler.authenticate
            return SMTP(handler, hostname="post.example", authenticator=authenticator, **options)

        encrypts = tls if kind == "tls" else None
        server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=encrypts)
        ports[kind] = server.sockets[0].getsockname()[1]
    print(json.dumps(ports), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
