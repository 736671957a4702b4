"""Counting acknowledgements, with fake tabs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any, cast

import pytest
from beanie import PydanticObjectId
from bson import DBRef

from quartapp import clock
from quartapp.activities import ACCOUNT_DISABLED
from quartapp.authority.change_stream import Change
from quartapp.models.audit.event import Event
from quartapp.models.audit.event_receipts import EventReceipts
from quartapp.models.audit.receipt import SETTLED_AFTER, Receipt
from quartapp.ws import receipts as ws_receipts
from quartapp.ws.connection import Connection
from quartapp.ws.receipts import Receipts
from tests.people import SECONDS

EVENT, ROLE = PydanticObjectId(), PydanticObjectId()


class Tab:
    """A fake tab that acknowledges or is closed when the test says so."""

    def __init__(self) -> None:
        self.end_ack: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()

    def acknowledge(self) -> None:
        self.end_ack.set_result(clock.monotonic())

    def break_off(self) -> None:
        self.end_ack.set_result(None)


class Kept(asyncio.Queue[Receipt]):
    """Collects the written receipts in order. Writing fails while `failing`."""

    failing = False

    def __init__(self) -> None:
        super().__init__()
        self.refused = asyncio.Event()

    async def write(self, _: PydanticObjectId, receipt: Receipt) -> None:
        if self.failing:
            self.refused.set()
            raise ConnectionError
        self.put_nowait(receipt)

    async def next(self) -> tuple[int, int, int]:
        """How many tabs, how many of them acknowledged, and how many will not."""
        async with asyncio.timeout(SECONDS):
            receipt = await self.get()
        assert receipt.missed is not None
        return receipt.tabs, receipt.acked, receipt.missed


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    kept = Kept()
    monkeypatch.setattr(EventReceipts, "keep", kept.write)
    monkeypatch.setattr(ws_receipts, "FIRST_WRITE_SECONDS", 0.1)
    monkeypatch.setattr(ws_receipts, "REWRITE_SECONDS", 0.05)
    return kept


@pytest.fixture
async def receipts() -> AsyncIterator[Receipts]:
    receipts = Receipts(cast(Any, None), "0")
    yield receipts
    await receipts.stop()


def expect(receipts: Receipts, tabs: Iterable[Tab]) -> None:
    receipts.expect_acks(EVENT, cast("list[Connection]", list(tabs)))


async def test_a_receipt_is_written_once_if_all_tabs_answer_together(
    receipts: Receipts, kept: Kept
) -> None:
    tabs = [Tab() for _ in range(3)]
    expect(receipts, tabs)
    tabs[0].acknowledge()
    tabs[1].break_off()
    await asyncio.sleep(0)
    assert kept.empty()
    tabs[2].acknowledge()
    assert await kept.next() == (3, 2, 1)
    assert kept.empty()


async def test_a_receipt_follows_tabs_that_answer_late(receipts: Receipts, kept: Kept) -> None:
    tabs = [Tab() for _ in range(3)]
    expect(receipts, tabs)
    tabs[1].acknowledge()
    assert await kept.next() == (3, 1, 0)
    tabs[2].acknowledge()
    assert await kept.next() == (3, 2, 0)
    tabs[0].break_off()
    assert await kept.next() == (3, 2, 1)


async def test_a_tab_is_counted_once_though_it_is_expected_again(
    receipts: Receipts, kept: Kept
) -> None:
    tabs = [Tab() for _ in range(3)]
    expect(receipts, tabs)
    for tab in tabs:
        tab.acknowledge()
    assert await kept.next() == (3, 3, 0)
    late = Tab()
    late.acknowledge()
    expect(receipts, [*tabs, late])
    assert await kept.next() == (4, 4, 0)
    assert receipts.count_tabs(EVENT) == 4


async def test_a_receipt_that_cannot_be_written_is_retried(receipts: Receipts, kept: Kept) -> None:
    kept.failing = True
    tab = Tab()
    expect(receipts, [tab])
    tab.acknowledge()
    async with asyncio.timeout(SECONDS):
        await kept.refused.wait()
    kept.failing = False
    assert await kept.next() == (1, 1, 0)


async def test_a_stopping_worker_writes_its_receipts(
    receipts: Receipts, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ws_receipts, "FIRST_WRITE_SECONDS", 2 * SECONDS)
    tabs = [Tab() for _ in range(2)]
    expect(receipts, tabs)
    tabs[0].acknowledge()
    await asyncio.sleep(0)
    await receipts.stop()
    assert await kept.next() == (2, 1, 0)


NEW, OLD = timedelta(0), 2 * SETTLED_AFTER
ONE = Receipt(worker="0", tabs=2, acked=1, missed=0, slowest_ms=12)
DONE = Receipt(worker="1", tabs=2, acked=1, missed=1, slowest_ms=30)
BEFORE = Receipt(worker="2", tabs=3, acked=2, slowest_ms=8)
REFUSED = "refused at its next request"


@pytest.mark.parametrize(
    ("age", "kept", "counted", "words"),
    [
        (NEW, [], 0, ""),
        (NEW, [], 2, "2 tabs not acknowledged yet"),
        (OLD, [], 2, "2 tabs unknown because a worker stopped, refused at their next request"),
        (NEW, [ONE], 0, "1 tab on 1 worker acknowledged, slowest 12 ms; 1 not acknowledged yet"),
        (
            OLD,
            [ONE],
            2,
            "1 tab on 1 worker acknowledged, slowest 12 ms; "
            f"1 unknown because a worker stopped, {REFUSED}",
        ),
        (
            NEW,
            [ONE, DONE],
            5,
            "2 tabs on 2 workers acknowledged, slowest 30 ms; 2 not acknowledged yet; "
            f"1 not acknowledged in time, {REFUSED}",
        ),
        (
            OLD,
            [BEFORE],
            0,
            f"2 tabs on 1 worker acknowledged, slowest 8 ms; 1 not acknowledged in time, {REFUSED}",
        ),
    ],
)
def test_the_text_of_a_receipt_states_only_known_counts(
    age: timedelta, kept: list[Receipt], counted: int, words: str
) -> None:
    event = Event.model_construct(
        verb=ACCOUNT_DISABLED.audit,
        at=clock.now() - age,
        receipts=kept,
        counted_tabs=counted,
        silent_worker=False,
    )
    assert str(event.reach) == words


def test_a_worker_that_did_not_respond_is_mentioned() -> None:
    event = Event.model_construct(
        verb=ACCOUNT_DISABLED.audit,
        at=clock.now(),
        receipts=[],
        counted_tabs=0,
        silent_worker=True,
    )
    assert event.reach.sentence.startswith(" A worker did not respond, so open tabs there are not")


class HubOfOneRole:
    """A fake hub with one session, whose user holds ROLE."""

    def __init__(self, *tabs: Tab) -> None:
        self._tabs = set(tabs)

    def sessions_with_roles(self, roles: set[PydanticObjectId]) -> set[PydanticObjectId]:
        return {EVENT} if ROLE in roles else set()

    def connections_of(self, session_id: PydanticObjectId) -> set[Tab]:
        return self._tabs if session_id == EVENT else set()


async def test_tabs_of_a_deleted_role_are_counted_when_the_change_arrives(kept: Kept) -> None:
    tabs = Tab(), Tab()
    receipts = Receipts(cast(Any, HubOfOneRole(*tabs)), "0")
    other = PydanticObjectId()
    for role_id in (other, ROLE):
        document = {"_id": role_id, "event": DBRef("events", EVENT)}
        receipts.on_change(Change("insert", "role_deletions", role_id, document, {}))
        assert receipts.count_tabs(EVENT) == (2 if role_id == ROLE else 0)
    receipts.on_change(Change("insert", "role_deletions", ROLE, {"_id": ROLE, "event": None}, {}))
    for tab in tabs:
        tab.acknowledge()
    assert await kept.next() == (2, 2, 0)
    await receipts.stop()
