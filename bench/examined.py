"""How many index entries and documents the queries of the application examine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pymongo import monitoring
from pymongo.database import Database

from tests.query_plans import SMALL, Query, Recorder, queries


@dataclass(frozen=True)
class Plan:
    """What one query examines and returns. `query` is as the database was asked."""

    query: Query
    keys: int
    documents: int
    returned: int
    milliseconds: int

    @property
    def number(self) -> int:
        return max(self.keys, self.documents)

    def __str__(self) -> str:
        return (
            f"{self.keys} entries and {self.documents} documents for {self.returned} results, "
            f"{self.milliseconds} ms, {self.query.origin}: {self.query}"
        )


class Examined(Recorder):
    """Notes every query of the application, also those of the same shape, until they are taken.

    Queries of collections that do not grow (SMALL) are left out.
    """

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if origin := self.origin:
            found = queries(event.command, origin)
            self._new += [query for query in found if query.collection not in SMALL]

    def explain(self, database: Database[Any]) -> list[Plan]:
        """Return the plans of the queries since the last call, and forget these."""
        return [self._plan(database, query) for query in self.take()]

    def _plan(self, database: Database[Any], query: Query) -> Plan:
        command = {"explain": query.command, "verbosity": "executionStats"}
        figures = database.command(command)["executionStats"]
        return Plan(
            query,
            keys=figures["totalKeysExamined"],
            documents=figures["totalDocsExamined"],
            returned=figures["nReturned"],
            milliseconds=figures["executionTimeMillis"],
        )
