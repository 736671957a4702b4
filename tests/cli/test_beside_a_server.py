"""Commands beside a running server, whose pages and tabs notice (P1, P3)."""

import asyncio
import secrets

from quartapp import clock
from quartapp.email.transports import Folder
from tests.cli.conftest import complaint
from tests.conftest import PASSWORD
from tests.people import Person, Server, command, until


async def test_an_account_made_here_signs_in_there(server: Server) -> None:
    name = f"cli-{secrets.token_hex(4)}"
    out = await server.run("user", "create", name, f"{name}@example.org", stdin=PASSWORD)
    assert out == f"Created {name} with the roles member.\n"
    async with Person(server.url, name, PASSWORD) as person:
        await person.sign_in()
        shown = await server.run("user", "show", name)
        assert "sessions  1" in shown
        assert "127.0.0.1" in shown


async def test_a_grant_arrives_in_the_open_tab_and_a_revocation_closes_it(
    server: Server, ada: Person
) -> None:
    async with ada.tab() as tab:
        # It reads while the commands run, and so answers pings.
        changed, _ = await asyncio.gather(
            tab.next("permissions.changed"),
            server.run("user", "grant", ada.username, "moderator"),
        )
        assert set(changed["added"]) == {"posts.moderate", "users.read"}
        code, _ = await asyncio.gather(
            tab.closed(), server.run("user", "revoke", ada.username, "moderator")
        )
        ended = tab.said[-1]
        assert (code, ended["reason"], ended["by"]) == (4401, "role_revoked", None)
    # The command had returned: no page believes the session any more.
    assert not await ada.is_signed_in()


async def test_each_way_to_sign_somebody_out_gives_its_reason(server: Server, ada: Person) -> None:
    for words, reason in (
        (("user", "end-sessions", ada.username), "ended_by_admin"),
        (("user", "disable", ada.username), "account_disabled"),
    ):
        async with ada.tab() as tab:
            code, _ = await asyncio.gather(tab.closed(), server.run(*words))
            assert (code, tab.said[-1]["reason"]) == (4401, reason)
            assert not await ada.is_signed_in()
        await server.run("user", "enable", ada.username)
        await ada.sign_in()


async def test_a_role_that_is_edited_changes_tabs_in_place_and_a_deleted_one_closes_them(
    server: Server, ada: Person
) -> None:
    role = f"role-{secrets.token_hex(4)}"
    await server.run("role", "create", role, "--permission", "users.read")
    await server.run("user", "grant", ada.username, role)
    async with ada.tab() as tab:
        # It reads while the command runs, and so answers pings.
        changed, _ = await asyncio.gather(
            tab.next("permissions.changed"),
            server.run("role", "edit", role, "--allow", "events.read", "--forbid", "users.read"),
        )
        assert (changed["added"], changed["removed"]) == (["events.read"], ["users.read"])
        assert (await ada.get("/admin/events")).status_code == 200
        assert (await ada.get("/admin/users")).status_code == 403
        code, _ = await asyncio.gather(tab.closed(), server.run("role", "delete", role))
        assert (code, tab.said[-1]["reason"]) == (4401, "role_deleted")


async def test_an_invitation_leaves_at_once_and_a_last_day_is_known_in_pages(
    server: Server, ada: Person
) -> None:
    email = f"guest-{secrets.token_hex(4)}@example.org"
    assert "is on its way" in await server.run("user", "invite", email)

    async def came() -> bool:
        return any(letter.to == email for letter in Folder(server.data / "mail").newest(500))

    await until(came)
    day = f"{clock.now():%Y-%m-%d}"
    await server.run("user", "disable", ada.username, "--on", day)
    assert "Expires on" in (await ada.get("/account")).text
    await server.run("user", "enable", ada.username)
    assert "Expires on" not in (await ada.get("/account")).text


async def test_a_refusal_disturbs_nobody(server: Server, ada: Person) -> None:
    async with ada.tab() as tab:
        # It reads on, and so answers pings, for as long as the commands take.
        reading = asyncio.create_task(tab.closed(within=60))
        for words in (
            ("user", "grant", ada.username, "nothing"),
            ("role", "delete", "member"),
            ("demo",),
            ("serve", "--port", "0"),
        ):
            complaint(await command(*words, data=server.data))
        assert await ada.is_signed_in()
        assert not reading.done()
        assert {message["type"] for message in tab.said} <= {"hello", "ping"}
        reading.cancel()
        await asyncio.wait([reading])


async def test_an_account_is_deleted_later_or_now_and_its_tabs_are_told(
    server: Server, ada: Person, bob: Person
) -> None:
    async with ada.tab() as tab:
        code, said = await asyncio.gather(
            tab.closed(), server.run("user", "delete", ada.username, "--remove-posts")
        )
        assert (code, tab.said[-1]["reason"]) == (4401, "account_disabled")
    assert "can no longer sign in and will be deleted on " in said
    assert "to be deleted on " in await server.run("user", "show", ada.username)
    assert "before that date" in await server.run("user", "delete", ada.username)
    assert "is active again" in await server.run("user", "restore", ada.username)
    await ada.sign_in()
    async with bob.tab() as tab:
        code, said = await asyncio.gather(
            tab.closed(), server.run("user", "delete", bob.username, "--now")
        )
        assert (code, tab.said[-1]["reason"]) == (4401, "account_disabled")
    assert f"{bob.username} was deleted." in said
    assert await ada.status(f"/users/{bob.username}") == 404
    refused = await server.run("user", "restore", bob.username, status=1)
    assert "there is no user" in refused
    await server.run("user", "delete", "root", "--now", status=1)
