"""Requests are bounded before the worker processes them."""

import asyncio
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import wtforms
from quart.formparser import FormDataParser
from werkzeug.datastructures import MultiDict

from quartapp import forms
from quartapp.forms import base
from quartapp.forms.accounts import CodeForm
from quartapp.forms.base import Form, max_length
from quartapp.forms.factors import AppCodeForm
from quartapp.middleware.request_bounds import COOKIES, FORM_FIELDS, HEADERS, PARAMETERS, URL_BYTES
from tests.integration.routes.conftest import ORIGIN, Visitor, Visitors

FORM = {"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded"}
COSTLY = "a" + "\u0315\u0300" * 30_000


def kinds() -> Iterator[type[Form]]:
    """Return all form classes of the application."""
    for module in pkgutil.iter_modules(forms.__path__, f"{forms.__name__}."):
        for kind in vars(importlib.import_module(module.name)).values():
            if isinstance(kind, type) and issubclass(kind, Form) and kind is not Form:
                yield kind


FIELDS = sorted({(kind.__name__, name) for kind in kinds() for name in kind()._fields})
TEXTS = {"StringField", "TextAreaField", "EmailField", "HiddenField"}
KINDS = {kind.__name__: kind for kind in kinds()}


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_each_field_has_a_length_limit_checked_first(
    monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    form = KINDS[kind](formdata=MultiDict())
    if isinstance(form[name], wtforms.PasswordField):
        # PasswordHasher and PasswordPolicy check the length of these fields, before any filter.
        assert form[name].filters == ()
        return
    most = max_length(form[name])
    assert most
    assert most <= 32 * 1024

    def reached(*_: Any) -> Any:
        raise AssertionError("a text that is too long was looked at")

    monkeypatch.setattr(base, "plain_code", reached)
    monkeypatch.setattr(base.Checked, "__call__", reached)
    for text in ("x" * (most + 1), COSTLY):
        form = KINDS[kind](formdata=MultiDict({form[name].name: text}))
        field = form[name]
        if isinstance(field, wtforms.SelectField | wtforms.SelectMultipleField):
            field.choices = [("a", "a")]
        assert not form[name].validate(form)
        # An unknown choice or an invalid date is an error already.
        assert "at most" in form[name].errors[-1] or "long" in form[name].errors[-1]
        assert len(form[name].errors) == 1 or form[name].type not in TEXTS


CODES = {
    "full-width": "".join(chr(0xFF10 + digit) for digit in range(1, 7)),
    "Arabic-Indic": "١٢٣٤٥٦",
    "Devanagari, grouped": "१२३ ४५६",
    "dashes": "12-34\u201356\u2212",
    "invisible characters": "\u200f123\u00a0\u200b456\ufeff",
    "an ideographic space": "123\u3000456",
}


@pytest.mark.parametrize("typed", CODES.values(), ids=CODES)
@pytest.mark.parametrize("kind", [CodeForm, AppCodeForm])
def test_codes_are_accepted_in_digits_of_any_script(kind: type[Form], typed: str) -> None:
    form = kind(formdata=MultiDict({"code": typed}))
    assert form.validate(), form.errors
    assert form["code"].data == "123456"


@pytest.mark.parametrize("typed", ["12345", "1234567", "12345a", "१२३४५", "½½½½½½", "一二三四五六"])
def test_text_that_is_no_code_in_any_script_is_refused(typed: str) -> None:
    assert not CodeForm(formdata=MultiDict({"code": typed})).validate()


HEADS: dict[str, tuple[str, dict[str, str], int]] = {
    "a long query": ("/login?next=/" + "a" * URL_BYTES, {}, 414),
    "a long path": ("/users/" + "a" * URL_BYTES, {}, 414),
    "many parameters": ("/login?" + "a&" * PARAMETERS, {}, 414),
    "many headers": ("/login", {f"X-{number}": "" for number in range(HEADERS)}, 431),
    "many cookies": ("/login", {"Cookie": "a=b;" * COOKIES}, 431),
    "a long cookie": ("/login", {"Cookie": 'a="' + r"\054" * 2048 + '"'}, 431),
    "a long content type": ("/login", {"Content-Type": "text/html" + ";a=b" * 100}, 431),
}


@pytest.mark.parametrize("kind", HEADS)
async def test_an_oversized_request_head_is_refused_with_security_headers(
    anonymous: Visitor, kind: str
) -> None:
    path, headers, status = HEADS[kind]
    answer = await anonymous.get(path, headers=headers)
    assert answer.status == status
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


async def test_an_oversized_handshake_is_refused(visitors: Visitors) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/ws", "query_string": b"a&" * PARAMETERS, "headers": []}
    await visitors.app.asgi_app(scope, None, send)  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_a_large_head_within_the_limits_is_answered(anonymous: Visitor) -> None:
    headers = {"Cookie": ";".join(["a=b"] * (COOKIES - 20)), **{f"X-{n}": "" for n in range(50)}}
    query = "&".join(["next=/" + "a" * 60] * (PARAMETERS - 1))
    assert (await anonymous.get(f"/login?{query}", headers=headers)).status == 200


async def test_a_form_has_a_bounded_number_of_fields(ada: Visitor) -> None:
    token = (await ada.csrf_token()).replace("=", "%3D")
    start = f"csrf_token={token}&title=A&body=B"
    rest = "&" * (FORM_FIELDS - 3)
    answer = await ada.ask("POST", "/posts/new", data=start + rest, headers=FORM)
    assert answer.status == 303
    for more in ("&", "&a" * 30_000):
        answer = await ada.ask("POST", "/posts/new", data=start + rest + more, headers=FORM)
        assert answer.status == 413


async def test_multipart_bodies_are_not_parsed(
    anonymous: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def parsed(*_: Any) -> Any:
        raise AssertionError("a multipart body was parsed")

    monkeypatch.setattr(FormDataParser, "_parse_multipart", parsed)
    body = b'--b\r\nContent-Disposition: form-data; name="login"\r\n\r\nada\r\n--b--\r\n'
    headers = {"Origin": ORIGIN, "Content-Type": "multipart/form-data; boundary=b"}
    answer = await anonymous.ask("POST", "/login", data=body, headers=headers)
    assert answer.status == 422


async def test_large_forms_are_parsed_one_at_a_time(
    visitors: Visitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, parsed = 0, []
    parse = FormDataParser._parse_urlencoded

    async def counting(*args: Any) -> Any:
        parsed.append(turn)
        return await parse(*args)

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(FormDataParser, "_parse_urlencoded", counting)
    counter = asyncio.create_task(count())
    anonymous = visitors.anonymous()
    await asyncio.gather(*(anonymous.send("/login", {"login": "+%" * 4_000}) for _ in range(20)))
    counter.cancel()
    assert len(parsed) == 20
    assert len(set(parsed)) == 20
