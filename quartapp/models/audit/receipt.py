"""Counts of the open tabs whose sessions an audit event has ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from pydantic import BaseModel

from quartapp.i18n import gettext as _
from quartapp.i18n import ngettext

# After this no worker waits for an acknowledgement: a socket stays open for ten seconds for it, and
# if thousands are informed, the last of them are some seconds after the event.
SETTLED_AFTER = timedelta(seconds=30)


class Receipt(BaseModel):
    """One worker's count of the tabs whose sessions an event has ended, replaced as it learns more.

    `acked` tabs have acknowledged, the slowest of them `slowest_ms` after the worker read the
    event. `missed` tabs will not acknowledge any more: their connection is closed or their time is
    over. The worker still waits for the others. A receipt without `missed` is from an older
    version, which wrote receipts only when it waited for none.
    """

    worker: str
    tabs: int
    acked: int
    missed: int | None = None
    slowest_ms: int

    @property
    def pending(self) -> int:
        """How many tabs the worker still waits for."""
        return 0 if self.missed is None else max(0, self.tabs - self.acked - self.missed)


@dataclass(frozen=True, slots=True)
class Reach:
    """How many open tabs have acknowledged the end of their session, and what is known of the
    others.

    `pending` tabs may still acknowledge, `missed` ones will not. `unknown` ones were pending when
    all workers stopped waiting. `silent` says that a worker did not acknowledge the barrier.
    """

    acked: int = 0
    workers: int = 0
    slowest_ms: int = 0
    pending: int = 0
    missed: int = 0
    unknown: int = 0
    silent: bool = False

    @classmethod
    def of(cls, receipts: Sequence[Receipt], *, tabs: int, silent: bool, settled: bool) -> Self:
        """Return the sum of the receipts of one event.

        `tabs` is how many open tabs the workers reported when they acknowledged the barrier. If the
        receipts have fewer, a worker has written none yet, and the difference is pending. With
        `settled`, which means that no receipt will change any more, pending tabs are unknown.
        `silent` is passed on.
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

    @classmethod
    def sum(cls, parts: Sequence[Self], *, workers: int) -> Self:
        """Return the sum of what is known of several events, whose tabs have acknowledged on so
        many workers. The slowest of them all counts."""
        return cls(
            acked=sum(part.acked for part in parts),
            workers=workers,
            slowest_ms=max((part.slowest_ms for part in parts), default=0),
            pending=sum(part.pending for part in parts),
            missed=sum(part.missed for part in parts),
            unknown=sum(part.unknown for part in parts),
            silent=any(part.silent for part in parts),
        )

    def __str__(self) -> str:
        """Return the counts that are not zero as a sentence in the current language, without a full
        stop; empty if there were no tabs and no worker was silent."""
        parts: list[str] = []

        def tabs(count: int) -> str:
            return str(count) if parts else ngettext("%(num)s tab", "%(num)s tabs", count)

        if self.acked:
            where = ngettext("on %(num)s worker", "on %(num)s workers", self.workers)
            text = _("%(tabs)s %(where)s acknowledged, slowest %(time)s ms")
            parts.append(text % {"tabs": tabs(self.acked), "where": where, "time": self.slowest_ms})
        if self.pending:
            parts.append(_("%(tabs)s not acknowledged yet", tabs=tabs(self.pending)))
        if self.missed:
            parts.append(
                ngettext(
                    "%(tabs)s not acknowledged in time, refused at its next request",
                    "%(tabs)s not acknowledged in time, refused at their next request",
                    self.missed,
                    tabs=tabs(self.missed),
                )
            )
        if self.unknown:
            parts.append(
                ngettext(
                    "%(tabs)s unknown because a worker stopped, refused at its next request",
                    "%(tabs)s unknown because a worker stopped, refused at their next request",
                    self.unknown,
                    tabs=tabs(self.unknown),
                )
            )
        if self.silent:
            parts.append(
                _(
                    "a worker did not respond, so open tabs there are not counted; they are "
                    "refused at their next request"
                )
            )
        return "; ".join(parts)

    @property
    def sentence(self) -> str:
        """The text of `str()` as a sentence with a capital, a full stop and a space before it;
        empty if that is."""
        words = str(self)
        return f" {words[0].upper()}{words[1:]}." if words else ""
