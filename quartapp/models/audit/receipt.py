"""What became of the open tabs whose sessions an audit event has ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from pydantic import BaseModel

# After this no worker waits for an acknowledgement any more: a socket listens for ten seconds, and
# when thousands are told, the last of them are told some seconds after the event.
SETTLED_AFTER = timedelta(seconds=30)


class Receipt(BaseModel):
    """One worker's count of the tabs that an event has ended there. Updated as it learns more.

    `acked` have acknowledged the end of their session, the slowest of them `slowest_ms` after the
    worker heard of it; `missed` will not acknowledge it any more, because their connection is
    closed or their time is over. The others are still waited for. A receipt without `missed` is
    from a version that wrote receipts only once nothing was waited for.
    """

    worker: str
    tabs: int
    acked: int
    missed: int | None = None
    slowest_ms: int

    @property
    def pending(self) -> int:
        return 0 if self.missed is None else max(0, self.tabs - self.acked - self.missed)


@dataclass(frozen=True, slots=True)
class Reach:
    """How many open tabs have acknowledged that their session is over, and what is known of the
    others. `str()` of it is a sentence without its full stop; empty if there were no tabs."""

    acked: int = 0
    workers: int = 0
    slowest_ms: int = 0
    pending: int = 0
    missed: int = 0
    unknown: int = 0
    silent: bool = False

    @classmethod
    def of(cls, receipts: Sequence[Receipt], *, tabs: int, silent: bool, settled: bool) -> Self:
        """Add up the receipts of one event.

        `tabs` is how many open tabs the workers counted when they acknowledged the event's barrier:
        more than the receipts say, if a worker has written none yet. `silent` means that a worker
        did not acknowledge the barrier, and `settled` that no receipt changes any more.
        """
        acked = sum(receipt.acked for receipt in receipts)
        pending = sum(receipt.pending for receipt in receipts)
        pending += max(0, tabs - sum(receipt.tabs for receipt in receipts))
        return cls(
            acked=acked,
            workers=len({receipt.worker for receipt in receipts if receipt.acked}),
            slowest_ms=max((r.slowest_ms for r in receipts if r.acked), default=0),
            pending=0 if settled else pending,
            missed=sum(
                receipt.tabs - receipt.acked if receipt.missed is None else receipt.missed
                for receipt in receipts
            ),
            unknown=pending if settled else 0,
            silent=silent,
        )

    def __str__(self) -> str:
        parts: list[str] = []

        def add(count: int, words: str) -> None:
            if count:
                parts.append(f"{f'{count}' if parts else _count(count, 'tab')} {words}")

        where = f"on {_count(self.workers, 'worker')}"
        add(self.acked, f"{where} acknowledged, slowest {self.slowest_ms} ms")
        add(self.pending, "not acknowledged yet")
        add(self.missed, f"not acknowledged in time, {_refused(self.missed)}")
        add(self.unknown, f"unknown because a worker stopped, {_refused(self.unknown)}")
        if self.silent:
            parts.append(
                "a worker did not respond, so open tabs there are not counted; they are refused at "
                "their next request"
            )
        return "; ".join(parts)

    @property
    def sentence(self) -> str:
        """The same as a sentence that follows another: with a space before it and a full stop."""
        words = str(self)
        return f" {words[0].upper()}{words[1:]}." if words else ""


def _refused(count: int) -> str:
    return f"refused at {'its' if count == 1 else 'their'} next request"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
