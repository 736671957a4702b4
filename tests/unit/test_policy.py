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
class FakeUser:
    user_id: int | None = None
    permissions: frozenset[str] = field(default_factory=frozenset)


@dataclass
class FakePost:
    author_id: int | None = 1


def user_with_role(user_id: int | None, role: str | None = None) -> FakeUser:
    return FakeUser(user_id, frozenset(BUILT_IN_ROLES[role][1]) if role else frozenset())


AUTHOR, OTHER = user_with_role(1, MEMBER), user_with_role(2, MEMBER)
SILENCED = user_with_role(1)
MODERATOR, ADMINISTRATOR = user_with_role(3, "moderator"), user_with_role(4, ADMIN)
SYSTEM = user_with_role(None)


@pytest.mark.parametrize("permission", Permission)
def test_each_permission_is_checked_by_its_own_name(permission: Permission) -> None:
    assert may(FakeUser(1, frozenset({permission.value})), permission)
    others = frozenset(other.value for other in Permission if other is not permission)
    assert not may(FakeUser(1, others), permission)
    assert LABELS[permission]


@pytest.mark.parametrize("permission", Permission)
def test_anonymous_users_may_nothing_and_administrators_everything(permission: Permission) -> None:
    assert not may(SYSTEM, permission)
    assert may(ADMINISTRATOR, permission)


def test_members_write_and_moderators_also_moderate() -> None:
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
        (SYSTEM, False, False),
    ],
)
def test_authors_edit_and_authors_and_moderators_delete(
    actor: FakeUser, edits: bool, deletes: bool
) -> None:
    assert may_edit(actor, FakePost(author_id=1)) is edits
    assert may_delete(actor, FakePost(author_id=1)) is deletes


def test_anonymous_users_do_not_own_posts_without_an_author() -> None:
    orphan = FakePost(author_id=None)
    assert not owns(SYSTEM, orphan)
    assert not may_edit(FakeUser(None, frozenset({"posts.write"})), orphan)
