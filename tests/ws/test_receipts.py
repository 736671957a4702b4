"""The gathering of receipts where thousands are told one after another: tabs are pretended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

import pytest
from beanie import PydanticObjectId

from quartapp import clock
from quartapp.models.event import Event, Receipt
from quartapp.ws import receipts as ws_receipts
from quartapp.ws.connection import Connection
from quartapp.ws.receipts import Receipts

EVENT = PydanticObjectId()
PATIENCE = 0.3


class Tab:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self._answered = asyncio.Event()

    def answer(self) -> None:
        self._answered.set()

    @property
    def over(self) -> bool:
        return self._answered.is_set()

    async def answered(self) -> float | None:
        await self._answered.wait()
        return clock.monotonic()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[Receipt]:
    """The receipts that were kept; patience is short."""
    queue: asyncio.Queue[Receipt] = asyncio.Queue()

    async def keep(_: PydanticObjectId, receipt: Receipt) -> None:
        queue.put_nowait(receipt)

    monkeypatch.setattr(Event, "add_receipt", keep)
    monkeypatch.setattr(ws_receipts, "PATIENCE_SECONDS", PATIENCE)
    return queue


@pytest.fixture
async def receipts() -> AsyncIterator[Receipts]:
    receipts = Receipts(cast(Any, None), "0")
    yield receipts
    await receipts.stop()


def expect(receipts: Receipts, tabs: Iterable[Tab]) -> None:
    receipts.expect(EVENT, cast("list[Connection]", list(tabs)))


async def test_while_others_answer_those_are_waited_for_that_do_not(
    receipts: Receipts, kept: asyncio.Queue[Receipt]
) -> None:
    tabs = [Tab() for _ in range(8)]
    expect(receipts, tabs)
    # Whichever is looked at first: at some time it is one of the last.
    for tab in (*tabs[1:], tabs[0]):
        await asyncio.sleep(PATIENCE / 2)
        tab.answer()
    receipt = await asyncio.wait_for(kept.get(), 5)
    assert (receipt.tabs, receipt.acked) == (8, 8)


async def test_when_nobody_answers_any_more_the_receipt_says_how_many_did(
    receipts: Receipts, kept: asyncio.Queue[Receipt]
) -> None:
    tabs = [Tab() for _ in range(4)]
    expect(receipts, tabs)
    tabs[2].answer()
    receipt = await asyncio.wait_for(kept.get(), 5)
    assert (receipt.tabs, receipt.acked) == (4, 1)


async def test_a_tab_is_counted_once_though_it_is_expected_again_when_the_round_is_over(
    receipts: Receipts, kept: asyncio.Queue[Receipt]
) -> None:
    tabs = [Tab() for _ in range(3)]
    expect(receipts, tabs)
    await asyncio.wait_for(kept.get(), 5)
    late = Tab()
    late.answer()
    expect(receipts, [*tabs, late])
    receipt = await asyncio.wait_for(kept.get(), 5)
    assert (receipt.tabs, receipt.acked) == (1, 1)
    assert receipts.tabs(EVENT) == 4
