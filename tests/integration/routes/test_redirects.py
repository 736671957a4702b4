"""The sign-in page redirects only to pages of this site (ASVS 3.7.2)."""

from urllib.parse import quote, urljoin, urlsplit

from tests.integration.routes.conftest import ORIGIN, Visitor

EXTERNAL = [
    "//evil.example",
    "///evil.example",
    "////evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "\\/evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    "\t//evil.example",
    " //evil.example",
    "https:evil.example",
    "https:/evil.example",
    "https://evil.example",
    "http://localhost@evil.example",
    "HTTPS://evil.example/posts",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "data:text/html,x",
    "evil.example",
    "/posts\r\nSet-Cookie: a=b",
    "/posts\r\n\r\n<script>",
    "/posts\0",
    "/\u2028/evil.example",
    "/" + "x" * 3000,
    ".//evil.example",
    "?next=//evil.example",
    "#//evil.example",
]


async def test_an_external_next_redirects_to_the_home_page(ada: Visitor) -> None:
    wrong = {}
    for target in EXTERNAL:
        page = f"/login?next={quote(target, safe='')}"
        newcomer = ada.another_device()
        for answer in (
            await ada.get(page),
            await newcomer.post(page, login="ada", password=ada.password),
        ):
            if answer.status not in (302, 303) or answer.headers.getlist("Location") != ["/"]:
                wrong[target] = (answer.status, answer.location)
        await newcomer.post("/logout")
    assert wrong == {}


async def test_an_internal_next_is_followed_after_sign_in(ada: Visitor) -> None:
    for target in (
        "/posts",
        "/admin/users?q=a&after=b",
        "/posts/x#comment-y",
        "/users/%C3%A4",
        "/a:b",
        "/a//b",
    ):
        page = f"/login?next={quote(target, safe='')}"
        other = ada.another_device()
        shown = await other.get(page)
        # The form keeps the next page, also after a failed try.
        assert f'action="{page}"' in shown.text
        assert (await other.post(page, login="ada", password="wrong")).status == 422
        answer = await other.post(page, login="ada", password=ada.password)
        assert (answer.status, answer.location) == (303, target)
        assert urlsplit(urljoin(ORIGIN, answer.location)).netloc == "localhost"


async def test_sign_in_returns_to_the_requested_page(ada: Visitor) -> None:
    await ada.post("/posts/new", title="A", body="B")
    other = ada.another_device()
    redirect = await other.get("/account/notices?after=7")
    answer = await other.post(redirect.location, login="ada", password=ada.password)
    assert answer.location == "/account/notices?after=7"


async def test_a_form_sent_signed_out_returns_to_its_own_page(
    ada: Visitor,
) -> None:
    anonymous = ada.another_device()
    token = await anonymous.csrf_token()
    for referer, back in (
        (f"{ORIGIN}/posts/new", "/login?next=%2Fposts%2Fnew"),
        ("http://evil.example/posts", "/login?next=%2Fposts%2Fnew"),
        (f"{ORIGIN}//evil.example", "/login"),
    ):
        headers = {"Origin": ORIGIN, "Referer": referer}
        answer = await anonymous.send("/posts/new", {"csrf_token": token}, headers)
        assert (answer.status, answer.location) == (302, back)
