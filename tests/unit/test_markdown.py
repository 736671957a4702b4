"""Markdown: what it becomes, what is removed, and that costly texts are bounded."""

import asyncio
import re

import pytest

from quartapp.errors import RetryLater
from quartapp.security.markdown import MAX_CACHED, MAX_WAITING, MarkdownRenderer, excerpt, to_html

ALLOWED = re.compile(
    r"</?(?:p|br|hr|strong|em|code|pre|blockquote|ul|ol|li|h[1-6])>"
    r'|<ol start="\d+">|</a>'
    r'|<a(?: href="[^"]*")?(?: title="[^"]*")? rel="nofollow ugc noopener">'
)
HOSTILE = [
    "<script>alert(1)</script>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<img src=x onerror=alert(1)>",
    '<a href="javascript:alert(1)">x</a>',
    "<div><style>*{}</style><iframe src=//evil.example></iframe></div>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java&#115;cript:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](<javascript:alert(1)>)",
    "<javascript:alert(1)>",
    "[x](vbscript:x) [x](file:///etc/passwd) [x](data:text/html,<script>alert(1)</script>)",
    "![x](data:image/png;base64,AAAA) ![x](javascript:alert(1))",
    '[x](https://example.org "\\" onmouseover=alert(1) \\"")',
    '[x](https://example.org/"onmouseover="alert(1))',
    '![x" onerror="alert(1)](https://example.org/x.png)',
    '![x](https://example.org/x.png"onerror="alert(1))',
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;img src=x onerror=alert(1)&#62;",
    "```\n<script>alert(1)</script>\n```",
    '```"onclick="alert(1)\nx\n```',
    "`<script>alert(1)</script>`",
    "**<b onclick=alert(1)>x**",
    "<!-- --><!--><script>alert(1)</script>-->",
    "<svg><math><mtext><script>alert(1)</script>",
    "[a]: javascript:alert(1)\n\n[a]",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_yields_only_listed_tags_and_safe_links(text: str) -> None:
    html = to_html(text)
    assert "<" not in ALLOWED.sub("", html), html
    for address in re.findall(r'<a href="([^"]*)"', html):
        assert re.match(r"https://example\.org", address), html


def test_common_marks_become_elements() -> None:
    text = "**b** *i* `c` [l](https://example.org)\n\n> q\n\n- x\n\n3. y\n\n---\n\n```\nf\n```"
    html = to_html(text)
    for part in (
        "<strong>b</strong> <em>i</em> <code>c</code>",
        '<a href="https://example.org" rel="nofollow ugc noopener">l</a>',
        *("<blockquote>\n<p>q</p>", "<ul>\n<li>x</li>", '<ol start="3">\n<li>y</li>', "<hr>"),
        "<pre><code>f\n</code></pre>",
    ):
        assert part in html


def test_plain_text_keeps_its_line_breaks_and_indents() -> None:
    assert to_html("One\ntwo\r\n\n    <three>") == "<p>One<br>\ntwo</p>\n<p>&lt;three&gt;</p>\n"


def test_images_become_links_and_inside_links_their_description() -> None:
    html = to_html("![A cat](https://example.org/c.png) [![dog](d.png)](https://example.org)")
    assert "<img" not in html
    assert re.findall(r">([^<]+)</a>", html) == ["A cat", "dog"]


def test_headings_start_below_those_of_the_page_and_skip_no_level() -> None:
    assert re.findall(r"<(h\d)>", to_html("# A\n### B\n###### C\n# D")) == ["h2", "h3", "h4", "h2"]
    assert re.findall(r"<(h\d)>", to_html("## A\n# B", below=2)) == ["h3", "h3"]
    assert re.findall(r"</(h\d)>", to_html("A\n===\n\nB\n---", below=5)) == ["h6", "h6"]


@pytest.mark.parametrize("mark", ["> ", "- ", "[", "![", "*a ", "1. "])
def test_nesting_is_limited(mark: str) -> None:
    html = to_html(mark * (20_000 // len(mark)))
    depth = deepest = 0
    for closing in re.findall(r"<(/?)(?:blockquote|ul|ol|li|em|strong|a)\b", html):
        depth += -1 if closing else 1
        deepest = max(deepest, depth)
    assert deepest <= 20


def test_a_short_text_does_not_become_megabytes_of_html() -> None:
    text = f"[a]: https://example.org/{'x' * 10_000}\n\n" + "[a] " * 2_400
    assert len(to_html(text)) < 10 * len(text)


def test_an_excerpt_has_no_marks_and_ends_at_a_blank() -> None:
    text = '# Title\n\n**Bold**, `code`, [a link](https://example.org "t")\n> 3 * 4\n- snake_case'
    assert excerpt(text, 200) == "Title Bold, code, a link 3 * 4 snake_case"
    assert excerpt("word " * 50, 20) == "word word word word…"
    assert excerpt("x" * 50, 20) == "x" * 20 + "…"


async def test_a_renderer_renders_a_text_once_and_drops_old_results() -> None:
    renderer = MarkdownRenderer()
    first = await renderer.render("**a**")
    assert await renderer.render("**a**") is first
    assert await renderer.render("# a") != await renderer.render("# a", below=2)
    for turn in range(12):
        await renderer.render(f"{turn} " + "x" * (MAX_CACHED // 20))
    assert await renderer.render("**a**") is not first
    renderer.close()


async def test_a_renderer_refuses_texts_beyond_its_queue() -> None:
    renderer = MarkdownRenderer()
    waiting = [asyncio.create_task(renderer.render(f"{turn}")) for turn in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(RetryLater):
        await renderer.render("one more")
    await asyncio.gather(*waiting)
    assert await renderer.render("later") == "<p>later</p>\n"
    renderer.close()
