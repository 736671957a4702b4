"""The page for exporting one's personal data."""

import asyncio
from collections.abc import AsyncIterator
from tempfile import SpooledTemporaryFile
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZipFile

from quart import Blueprint, Response, render_template
from quart_auth import login_required

from quartapp.auth import current_user, fresh_login_required, rate_limits
from quartapp.forms.accounts import LinkForm
from quartapp.log import log
from quartapp.models import User
from quartapp.models.privacy import data_export
from quartapp.runtime import settings

blueprint = Blueprint("exports", __name__)

IN_MEMORY = 1024 * 1024
CHUNK = 64 * 1024
SECONDS = 600


@blueprint.route("/account/export", methods=["GET", "POST"])
@login_required
@fresh_login_required
async def export() -> Any:
    """Show the form; on POST answer with a ZIP archive that contains all data about the user as
    JSON.

    A POST counts towards the user's limit of exports; past it, shows the form with 429. Then
    records the audit event, logs `user_exported`, and builds the archive. If one of these steps
    fails, the export is not counted and the error is raised, but an event that was recorded stays.
    A request that is cancelled stays counted. If the form is not valid or the user does not exist
    any more, shows the form with 422; nothing is counted or recorded. Raises SessionOver and
    RightsChanged if the session has ended or its rights have changed meanwhile.
    """
    form = await LinkForm.from_request()
    with form.catch_retry_later():
        if form.posted and (user := await User.get(current_user.user_id)):
            whom = str(user.id), settings().limit_export
            await rate_limits.count("export", whom)
            try:
                await data_export.record_export(user, by=current_user.actor)
                log.info("user_exported", user=user.username)
                return await _attachment(user)
            except Exception:
                await rate_limits.uncount("export", *whom)
                raise
    page = await render_template("privacy/export.html", form=form)
    return page, form.status, form.headers


async def _attachment(user: User) -> Response:
    """Return the archive as a download, with ten minutes for sending it.

    The archive is complete before the first byte is sent, so that an error still gets an error
    page. It is in memory up to 1 MiB, else in a temporary file, which is deleted after it was sent.
    """
    file: IO[bytes] = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
    try:
        size = await _pack(user, file)
    except BaseException:
        file.close()
        raise
    response = Response(_read(file), content_type="application/zip")
    response.timeout = SECONDS
    response.content_length = size
    response.headers["Content-Disposition"] = f'attachment; filename="{user.username}.zip"'
    return response


async def _pack(user: User, file: IO[bytes]) -> int:
    """Write a ZIP archive with `<username>.json`, all data of the user, into the file; return its
    size in bytes. The file is rewound to its start.

    Compresses and writes in a thread, in pieces of about CHUNK characters.
    """
    name = f"{user.username}.json"
    with ZipFile(file, "w", ZIP_DEFLATED) as archive, archive.open(name, "w") as entry:
        waiting: list[str] = []
        length = 0
        async for piece in data_export.export(user):
            waiting.append(piece)
            length += len(piece)
            if length >= CHUNK:
                await asyncio.to_thread(entry.write, "".join(waiting).encode())
                waiting, length = [], 0
        await asyncio.to_thread(entry.write, "".join(waiting).encode())
    size = file.tell()
    file.seek(0)
    return size


async def _read(file: IO[bytes]) -> AsyncIterator[bytes]:
    """Yield the file in chunks, each read in a thread. Closes the file at the end or if the client
    leaves.
    """
    try:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk
    finally:
        file.close()
