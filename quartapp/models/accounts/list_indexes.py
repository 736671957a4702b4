"""The indexes of the list of users for administrators: see `models.accounts.user_list`."""

from typing import Any

from pymongo import IndexModel

from quartapp.models.base.references import CASELESS

# The rare states of accounts, by the field that tells them. An index of each has only the accounts
# in this state.
INDEXED_STATES: dict[str, dict[str, Any]] = {
    "disabled": {"disabled_at": {"$type": "date"}},
    "closing": {"closed_at": {"$type": "date"}},
    "unverified": {"email_verified_at": None},
}


def _in_each_order(
    name: str, first: list[tuple[str, int]] | None = None, **options: Any
) -> list[IndexModel]:
    """Return indexes of users by username, by creation and by last use, after the fields `first`.

    Ids ascend with time, so they give the order of creation.
    """
    fields = first or []
    # MongoDB does not accept a condition for an index of the ids alone.
    by_id = [("_id", -1)] if first else [("_id", -1), ("seen_at", -1)]
    by_name = [*fields, ("username", 1)]
    return [
        IndexModel(by_name, name=f"{name}_by_username", collation=CASELESS, **options),
        IndexModel([*fields, *by_id], name=f"{name}_by_created", **options),
        IndexModel([*fields, ("seen_at", -1), ("_id", -1)], name=f"{name}_by_seen", **options),
    ]


LIST_INDEXES = [
    IndexModel([("seen_at", -1), ("_id", -1)], name="seen"),
    *_in_each_order("role", [("roles.$id", 1)]),
    *(
        index
        for state, condition in INDEXED_STATES.items()
        for index in _in_each_order(state, partialFilterExpression=condition)
    ),
]
