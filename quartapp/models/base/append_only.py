"""`AppendOnly`, the base class of documents that are inserted and never changed."""

from typing import Any, NoReturn

from quartapp.models.base.record import Record


class AppendOnly(Record):
    """A document without the methods that change or delete documents.

    They raise TypeError. A test looks at the commands that reach the database, so that a write
    past these methods is found too.
    """

    @classmethod
    async def change(cls, *_: Any, **__: Any) -> NoReturn:  # type: ignore[override]
        _refuse(cls)

    @classmethod
    async def change_all(cls, *_: Any, **__: Any) -> NoReturn:  # type: ignore[override]
        _refuse(cls)

    @classmethod
    async def erase(cls, *_: Any, **__: Any) -> NoReturn:  # type: ignore[override]
        _refuse(cls)

    async def update(self, *_: Any, **__: Any) -> NoReturn:  # type: ignore[override]
        _refuse(type(self))

    async def save(self, *_: Any, **__: Any) -> NoReturn:  # type: ignore[override]
        _refuse(type(self))

    async def replace(self, *_: Any, **__: Any) -> NoReturn:  # type: ignore[override]
        _refuse(type(self))

    async def delete(self, *_: Any, **__: Any) -> NoReturn:  # type: ignore[override]
        _refuse(type(self))


def _refuse(document: type) -> NoReturn:
    raise TypeError(f"a document of {document.__name__} is never changed or deleted")
