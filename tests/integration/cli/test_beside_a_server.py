"""Commands while a server is running: its open pages and tabs follow the changes."""

import asyncio
import re
import secrets

from quartapp import clock
from quartapp.email.transports import MailFolder
from tests.conftest import PASSWORD
from tests.integration.cli.conftest import complaint
from tests.people import Person, Server, command, until


async def test_created_account_can_sign_in_to_the_running_server(server: Server) -> None:
    name = f"cli-{secrets.token_hex(4)}"
    out = await server.run("user", "create", name, f"{name}@example.org", stdin=PASSWORD)
    assert out == f"Created {name} with the roles member.\n"
    async with Person(server.url, name, PASSWORD) as person:
        await person.sign_in()
        shown = await server.run("user", "show", name)
        assert "sessions  1" in shown
        assert "127.0.0.1" in shown


async def test_grant_updates_an_open_tab_and_revoke_closes_it(server: Server, ada: Person) -> None:
    async with ada.tab() as tab:
        # The tab reads messages, and so answers pings, while the commands run.
        changed, _ = await asyncio.gather(
            tab.next("permissions.changed"),
            server.run("user", "grant", ada.username, "moderator"),
        )
        assert set(changed["added"]) == {"posts.moderate", "users.read"}
        code, _ = await asyncio.gather(
            tab.closed(), server.run("user", "revoke", ada.username, "moderator")
        )
        ended = tab.messages[-1]
        assert (code, ended["reason"], ended["by"]) == (4401, "role_revoked", None)
    # After the command has returned, no worker accepts the session.
    assert not await ada.is_signed_in()


async def test_end_sessions_and_disable_close_tabs_with_their_reason(
    server: Server, ada: Person
) -> None:
    for words, reason in (
        (("user", "end-sessions", ada.username), "ended_by_admin"),
        (("user", "disable", ada.username), "account_disabled"),
    ):
        async with ada.tab() as tab:
            code, _ = await asyncio.gather(tab.closed(), server.run(*words))
            assert (code, tab.messages[-1]["reason"]) == (4401, reason)
            assert not await ada.is_signed_in()
        await server.run("user", "enable", ada.username)
        await ada.sign_in()


async def test_role_edit_updates_open_tabs_and_role_delete_closes_them(
    server: Server, ada: Person
) -> None:
    role = f"role-{secrets.token_hex(4)}"
    await server.run("role", "create", role, "--permission", "users.read")
    await server.run("user", "grant", ada.username, role)
    async with ada.tab() as tab:
        # The tab reads messages, and so answers pings, while the command runs.
        changed, _ = await asyncio.gather(
            tab.next("permissions.changed"),
            server.run("role", "edit", role, "--allow", "events.read", "--forbid", "users.read"),
        )
        assert (changed["added"], changed["removed"]) == (["events.read"], ["users.read"])
        assert (await ada.get("/admin/events")).status_code == 200
        assert (await ada.get("/admin/users")).status_code == 403
        code, _ = await asyncio.gather(tab.closed(), server.run("role", "delete", role))
        assert (code, tab.messages[-1]["reason"]) == (4401, "role_deleted")


async def test_invitation_is_sent_at_once_and_expiry_appears_on_pages(
    server: Server, ada: Person
) -> None:
    email = f"guest-{secrets.token_hex(4)}@example.org"
    assert "is on its way" in await server.run("user", "invite", email)

    async def came() -> bool:
        return any(letter.to == email for letter in MailFolder(server.data / "mail").newest(500))

    await until(came)
    day = f"{clock.now():%Y-%m-%d}"
    await server.run("user", "disable", ada.username, "--on", day)
    assert "Expires on" in (await ada.get("/account")).text
    await server.run("user", "enable", ada.username)
    assert "Expires on" not in (await ada.get("/account")).text


async def test_failing_commands_leave_open_tabs_connected(server: Server, ada: Person) -> None:
    async with ada.tab() as tab:
        # The tab reads messages, and so answers pings, while the commands run.
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
        assert {message["type"] for message in tab.messages} <= {"hello", "ping"}
        reading.cancel()
        await asyncio.wait([reading])


async def test_delete_closes_tabs_and_deletes_later_or_immediately(
    server: Server, ada: Person, bob: Person
) -> None:
    async with ada.tab() as tab:
        code, said = await asyncio.gather(
            tab.closed(), server.run("user", "delete", ada.username, "--remove-posts")
        )
        assert (code, tab.messages[-1]["reason"]) == (4401, "account_disabled")
    assert "can no longer sign in and will be deleted on " in said
    assert "to be deleted on " in await server.run("user", "show", ada.username)
    assert "before that date" in await server.run("user", "delete", ada.username)
    unchanged = f"Nothing was changed: {ada.username} is to be deleted on "
    assert (await server.run("user", "enable", ada.username)).startswith(unchanged)
    assert "is active again" in await server.run("user", "restore", ada.username)
    assert "was already enabled" in await server.run("user", "enable", ada.username)
    await ada.sign_in()
    async with bob.tab() as tab:
        code, said = await asyncio.gather(
            tab.closed(), server.run("user", "delete", bob.username, "--now")
        )
        assert (code, tab.messages[-1]["reason"]) == (4401, "account_disabled")
    assert f"{bob.username} was deleted." in said
    assert await ada.status(f"/users/{bob.username}") == 404
    refused = await server.run("user", "restore", bob.username, status=1)
    assert "there is no user" in refused


async def test_audit_verify_reports_faults_and_the_newest_seal(server: Server, ada: Person) -> None:
    async def is_sealed() -> bool:
        async with server.database() as database:
            return await database["unsealed"].find_one() is None

    await until(is_sealed, within=30)
    out = await server.run("audit", "verify")
    assert out.endswith("No faults.\n")
    (digest,) = re.findall("^  ([0-9a-f]{64})$", out, re.MULTILINE)
    assert "No faults." in await server.run("audit", "verify", "--expect", digest)
    async with server.database() as database:
        entry = await database["events"].find_one({"verb": "user.registered"}, sort=[("_id", -1)])
        assert entry
        changed = {"_id": entry["_id"]}
        await database["events"].update_one(changed, {"$set": {"verb": "x"}})
        ran = await command("audit", "verify", "--expect", "0" * 64, data=server.data)
        await database["events"].replace_one(changed, entry)
    assert ran.status == 1
    assert ran.err == "quartapp: the audit log has 2 faults\n"
    faults = [line for line in ran.out.splitlines() if line.startswith("Fault: ")]
    assert f"entry {entry['_id']} of seal" in faults[0]
    assert faults[1].startswith(f"Fault: no seal has the hash {'0' * 64}")
    assert complaint(await command("audit", "verify", "--expect", "x", data=server.data)) == (
        "--expect: a hash has 64 hexadecimal digits"
    )
