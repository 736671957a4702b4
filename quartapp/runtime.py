"""What one worker owns while it runs, in the order in which it starts, and access to it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol, cast

from quart import Quart, current_app

from quartapp.authority.barrier import Barrier
from quartapp.authority.change_stream import ChangeStream, Listener
from quartapp.authority.lease import Lease
from quartapp.authority.membership import Membership
from quartapp.authority.principal_cache import PrincipalCache
from quartapp.jobs.account_expiry import AccountExpiry
from quartapp.jobs.audit_sealer import AuditSealer
from quartapp.jobs.erasure import Erasure
from quartapp.jobs.hourly_counts import HourlyCountWriter
from quartapp.jobs.last_seen import LastSeenWriter
from quartapp.jobs.loop_lag import LoopLagMonitor
from quartapp.jobs.open_requests import OpenRequests
from quartapp.jobs.outbox_worker import OutboxWorker
from quartapp.jobs.role_deletions import RoleDeletions
from quartapp.jobs.role_expiry import RoleExpiry
from quartapp.security.encryption import Encryption
from quartapp.security.markdown import MarkdownRenderer
from quartapp.security.password_policy import PasswordPolicy
from quartapp.security.passwords import PasswordHasher
from quartapp.settings import Settings
from quartapp.ws.announcer import Announcer
from quartapp.ws.dispatcher import Dispatcher
from quartapp.ws.hub import Hub
from quartapp.ws.receipts import Receipts

_KEY = "quartapp"

# Attributes of Runtime that hear the changes of the database: each change in this order. The second
# column is the reason for the place.
CHANGE_LISTENERS = (
    (
        "principal_cache",
        "Before the barrier: drops the cached principals that the change makes stale.",
    ),
    ("lease", "Anywhere: it hears only the heartbeats of this worker."),
    (
        "membership",
        "Before the barrier, which compares acknowledgements with the workers it lists.",
    ),
    ("dispatcher", "Anywhere: it records which sessions to check, and its tasks check them later."),
    ("receipts", "Before the barrier, which acknowledges with the number of tabs counted here."),
    ("barrier", "After the five above: its acknowledgement says that they have heard the change."),
    ("outbox_worker", "Anywhere: it wakes its task."),
    ("account_expiry", "Anywhere: it wakes its task."),
    ("role_expiry", "Anywhere: it wakes its task."),
    ("role_deletions", "Anywhere: it wakes its task."),
    ("open_requests", "Anywhere: it wakes its task."),
)

# Attributes of Runtime that start when the database is connected, in this order, each with the
# reason for its place. They stop in the reverse order. `dispatcher` starts last and stops
# first, because it tells open sockets what the other parts know.
START_ORDER = (
    ("change_stream", "First: the others must hear each change that comes after their start."),
    ("lease", "After the stream, on which it hears its own heartbeats."),
    ("membership", "After the lease, so that the heartbeat of this worker is listed too."),
    ("barrier", "After the membership: it needs to know for which workers it waits."),
    ("receipts", "After the barrier, so that their last writes do not have to wait for its stop."),
    ("announcer", "After the stream: pages that follow topics need their sessions first."),
    ("last_seen", "Anywhere: it writes what is left when it stops."),
    ("hourly_counts", "Anywhere: it writes what is left when it stops."),
    ("outbox_worker", "After the stream, which wakes it to read the outbox."),
    ("account_expiry", "After the stream, which wakes it to read the database."),
    ("role_expiry", "After the stream, which wakes it to read the database."),
    ("erasure", "Anywhere: it needs only the database."),
    ("role_deletions", "After the stream, which wakes it to read the database."),
    ("audit_sealer", "Anywhere: it needs only the database."),
    ("open_requests", "After the stream, which wakes it to read the database."),
    ("loop_lag", "Anywhere: it needs nothing."),
)


class Part(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@dataclass
class Runtime:
    """What one worker owns. `runtime()` returns that of the current application."""

    settings: Settings
    hasher: PasswordHasher
    markdown: MarkdownRenderer
    password_policy: PasswordPolicy
    encryption: Encryption
    hub: Hub
    change_stream: ChangeStream
    lease: Lease
    membership: Membership
    barrier: Barrier
    receipts: Receipts
    announcer: Announcer
    principal_cache: PrincipalCache
    last_seen: LastSeenWriter
    hourly_counts: HourlyCountWriter
    outbox_worker: OutboxWorker
    account_expiry: AccountExpiry
    role_expiry: RoleExpiry
    erasure: Erasure
    role_deletions: RoleDeletions
    audit_sealer: AuditSealer
    open_requests: OpenRequests
    loop_lag: LoopLagMonitor
    dispatcher: Dispatcher
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        """Start the parts in START_ORDER. The database must be connected.

        Each part is registered on `stack` before it starts, so that closing the stack also stops
        one whose start has failed. Starts `dispatcher` last. Raises what the start of a part
        raises.
        """
        for name, _ in START_ORDER:
            part = cast(Part, getattr(self, name))
            self.stack.push_async_callback(part.stop)
            await part.start()
        self.stack.push_async_callback(self.dispatcher.stop)
        self.dispatcher.start(self.change_stream)

    async def drain(self) -> None:
        """Close every socket with the request to reconnect elsewhere, and accept no new ones.

        Takes about a second at most. Other requests are still served.
        """
        self.hub.draining = True
        await self.hub.close_for_restart()


def change_listeners(**parts: Listener) -> Sequence[Listener]:
    """Return the parts in the order of CHANGE_LISTENERS. Raises KeyError if one is missing."""
    return [parts[name] for name, _ in CHANGE_LISTENERS]


def install(app: Quart, runtime: Runtime) -> None:
    """Store the runtime in the application, where `runtime()` and `runtime_of` find it."""
    app.extensions[_KEY] = runtime


def runtime_of(app: Quart) -> Runtime:
    """Return the runtime of an application, for code without an application context. Raises
    KeyError if none was installed."""
    return app.extensions[_KEY]


def runtime() -> Runtime:
    """Return the runtime of the current application."""
    return current_app.extensions[_KEY]


def settings() -> Settings:
    return runtime().settings


def hasher() -> PasswordHasher:
    return runtime().hasher


def markdown() -> MarkdownRenderer:
    return runtime().markdown


def password_policy() -> PasswordPolicy:
    return runtime().password_policy


def encryption() -> Encryption:
    return runtime().encryption
