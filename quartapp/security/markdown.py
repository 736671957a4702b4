"""Markdown of posts as HTML that is safe to show on a page (ASVS 1.3.1).

markdown-it-py parses CommonMark, and nh3 keeps only the elements and attributes listed here, so an
error in one of the two does not let a script through. See docs/adr/0093.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from quartapp.errors import RetryLater
from quartapp.log import log

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

ELEMENTS = {
    *("p", "br", "hr", "strong", "em", "code", "pre", "blockquote", "ul", "ol", "li", "a"),
    *("h1", "h2", "h3", "h4", "h5", "h6"),
}
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
SCHEMES = {"http", "https", "mailto"}
LINKS_ARE = "nofollow ugc noopener"
# How many blocks and marks are parsed inside each other; deeper ones are shown as text.
MAX_NESTING = 20
# Indented text is often an old post or a quoted email, not code. Raw HTML is shown as text. A
# reference (`[name]: address`) repeats its address for each link, so that a short text becomes
# megabytes of HTML.
OFF = ["code", "html_block", "html_inline", "reference"]
MAX_WAITING = 16
# Characters of HTML that a worker keeps.
MAX_CACHED = 4_000_000

_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")
_MARK = re.compile(r"^ {0,3}(?:#{1,6} +|> ?|[-*+] +|(?:```|~~~).*$)", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![*`])[*`]+(?=[^\s*`])|(?<=[^\s*`])[*`]+|\b__|__\b")


class MarkdownRenderer:
    """Renders texts in a thread of its own, and keeps the latest results.

    20,000 characters take up to 0.3 s (`[[[[...`). The parser is written in Python, so the thread
    shares the interpreter with the event loop, which waits for it at most 5 ms at a time.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="markdown")
        self._waiting = 0
        self._kept: OrderedDict[tuple[str, int], Markup] = OrderedDict()
        self._size = 0

    async def render(self, text: str, *, below: int = 1) -> Markup:
        """Return the text as HTML (see `to_html`), from the cache if it is there.

        Otherwise waits for the texts that came before, renders it in the thread, and caches the
        result. Raises RetryLater, logged as `excess_rate_limit_exceeded`, when MAX_WAITING texts of
        this worker are being rendered or wait for it.
        """
        key = (text, below)
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return kept
        if self._waiting >= MAX_WAITING:
            log.warning("excess_rate_limit_exceeded", what="markdown")
            raise RetryLater
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, to_html, text, below)
        # A caller who is cancelled has not made the thread free.
        future.add_done_callback(lambda _: self._release())
        html = await asyncio.shield(future)
        self._keep(key, html)
        return html

    def close(self) -> None:
        """Close the thread, and cancel what waits for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _release(self) -> None:
        self._waiting -= 1

    def _keep(self, key: tuple[str, int], html: Markup) -> None:
        """Keep the result, and drop the least recently used ones beyond MAX_CACHED characters."""
        if key in self._kept:
            return
        self._kept[key] = html
        self._size += len(key[0]) + len(html)
        while self._size > MAX_CACHED:
            (old, _), dropped = self._kept.popitem(last=False)
            self._size -= len(old) + len(dropped)


def to_html(text: str, below: int = 1) -> Markup:
    """Return the Markdown text as HTML.

    CommonMark without raw HTML, indented code and reference definitions; a line break is kept.
    Images become links to them, so a page loads nothing from other hosts. Headings start at the
    level after `below` and skip none.
    """
    import nh3

    parser = _parser()
    environment: dict[str, Any] = {}
    tokens = parser.parse(text, environment)
    _prepare(tokens, below)
    html = parser.renderer.render(tokens, parser.options, environment)
    return Markup(  # noqa: S704
        nh3.clean(
            html,
            tags=ELEMENTS,
            attributes=ATTRIBUTES,
            url_schemes=SCHEMES,
            link_rel=LINKS_ARE,
        )
    )


def excerpt(text: str, length: int) -> str:
    """Return the beginning of the Markdown text on one line, without its most frequent marks.

    If that is longer than `length`, it is cut before its last blank, if it has one, and ends in an
    ellipsis. Does not parse: for lists.
    """
    beginning = text[: 5 * length]
    plain = _EMPHASIS.sub("", _LINK.sub(r"\1", _MARK.sub("", beginning)))
    line = " ".join(plain.split())
    return line if len(line) <= length else line[:length].rsplit(" ", 1)[0] + "…"


@cache
def _parser() -> MarkdownIt:
    """Return the parser, whose import takes 30 ms."""
    from markdown_it import MarkdownIt

    options = {"html": False, "breaks": True, "maxNesting": MAX_NESTING}
    parser = MarkdownIt("commonmark", options).disable(OFF)
    parser.add_render_rule("image", _image_as_link)
    return parser


def _image_as_link(
    renderer: Any, tokens: Sequence[Token], index: int, options: Any, environment: Any
) -> str:
    """Return a link to the image, whose text is the description of the image or, without one, its
    address; inside another link, or for an address `data:...`, only that text."""
    from markdown_it.common.utils import escapeHtml

    image = tokens[index]
    address = str(image.attrs["src"])
    words = escapeHtml(renderer.renderInlineAsText(image.children, options, environment) or address)
    if image.meta["in_link"] or address.startswith("data:"):
        return words
    return f'<a href="{escapeHtml(address)}">{words}</a>'


def _prepare(tokens: Sequence[Token], below: int) -> None:
    """Set the level of each heading, at most one more than that of the heading before; and note for
    each image whether it is inside a link."""
    last = below
    for token in tokens:
        if token.type == "heading_open":
            last = min(int(token.tag[1:]) + below, last + 1, 6)
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{last}"
        depth = 0
        for part in token.children or ():
            depth += part.nesting if part.tag == "a" else 0
            if part.type == "image":
                part.meta["in_link"] = depth > 0
