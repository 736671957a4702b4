"""Documents on mongomock-motor, an in-memory database without a mongod.

It knows neither transactions nor look-ups nor collations, and finds nothing by a link's id:
tests of those are in tests/integration/models.
"""

from __future__ import annotations

from typing import Any

import pytest
from beanie import init_beanie
from mongomock_motor import AsyncMongoMockClient

from quartapp import models


@pytest.fixture
async def mocked() -> Any:
    """Bind the documents to an empty database."""
    database = AsyncMongoMockClient(tz_aware=True)["quartapp"]
    await init_beanie(database, document_models=models.DOCUMENTS, skip_indexes=True)
    return database
