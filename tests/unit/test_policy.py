from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from quartapp.policy import (
    ADMIN,
    BUILT_IN_ROLES,
    LABELS,
    MEMBER,
    Permission,
    may,
    may_delete,
    may_edit,
    owns,
)


@dataclass
class Somebody:
    user_id: int | None = None
    permissions: frozenset[str] = field(default_factory=frozenset)


@dataclass
class Thing:
    author_id: int | None = 1


def somebody(user_id: int | None, role: str | None = None) -> Somebody:
    return Somebody(user_id, frozenset(BUILT_IN_ROLES[role][1]) if role else frozenset())


AUTHOR, OTHER = somebody(1, MEMBER), somebody(2, MEMBER)
SILENCED = somebody(1)
MODERATOR, ADMINISTRATOR = somebody(3, "moderator"), somebody(4, ADMIN)
NOBODY = somebody(None)


@pytest.mark.parametrize("permission", Permission)
def test_each_permission_is_asked_for_by_its_own_name(permission: Permission) -> None:
    assert may(Somebody(1, frozenset({permission.value})), permission)
    others = frozenset(other.value for other in Permission if other is not permission)
    assert not may(Somebody(1, others), permission)
    assert LABELS[permission]


@pytest.mark.parametrize("permission", Permission)
def test_nobody_may_nothing_and_an_administrator_everything(permission: Permission) -> None:
    assert not may(NOBODY, permission)
    assert may(ADMINISTRATOR, permission)


def test_a_member_writes_and_a_moderator_also_keeps_order() -> None:
    assert AUTHOR.permissions == {"posts.write"}
    assert MODERATOR.permissions == {"posts.write", "posts.moderate", "users.read"}


@pytest.mark.parametrize(
    ("actor", "edits", "deletes"),
    [
        (AUTHOR, True, True),
        (OTHER, False, False),
        (SILENCED, False, True),
        (MODERATOR, False, True),
        (ADMINISTRATOR, False, True),
        (NOBODY, False, False),
    ],
)
def test_authors_edit_and_authors_and_moderators_delete(
    actor: Somebody, edits: bool, deletes: bool
) -> None:
    assert may_edit(actor, Thing(author_id=1)) is edits
    assert may_delete(actor, Thing(author_id=1)) is deletes


def test_nobody_does_not_own_what_has_no_author() -> None:
    orphan = Thing(author_id=None)
    assert not owns(NOBODY, orphan)
    assert not may_edit(Somebody(None, frozenset({"posts.write"})), orphan)
