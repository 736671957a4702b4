"""Pages of posts and comments, which everybody can read.

If the session ends or a permission is lost before something is stored, SessionOver or RightsChanged
goes to the error handler.
"""

from typing import Any

from beanie import PydanticObjectId
from limits import RateLimitItem, parse
from quart import Blueprint, abort, flash, g, render_template, request
from quart_auth import login_required

from quartapp import policy
from quartapp.auth import Forbidden, current_user, permission_required, rate_limits
from quartapp.forms.posts import CommentForm, DraftForm, PostForm
from quartapp.i18n import gettext as _
from quartapp.models import Comment, Post, User
from quartapp.models.posts import comment as comments
from quartapp.models.posts import post as posts
from quartapp.models.posts.autosave import autosave, page_id
from quartapp.models.posts.draft import PostDraft
from quartapp.models.posts.search import search
from quartapp.policy import Permission
from quartapp.routes.carried_forms import carriable
from quartapp.routes.pagination import cut, id_after, id_or_404, next_page, parse_id
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import returns_to
from quartapp.runtime import markdown, settings

blueprint = Blueprint("posts", __name__)

MAX_SEARCH = 200
# Previews of one user. Each takes up to 0.3 s of processor time.
PREVIEWS = parse("1000 per hour")
# Drafts that one user saves, and as many again while typing.
DRAFTS = parse("1000 per hour")


@blueprint.get("/posts")
async def index() -> str:
    """Show a page of all posts, or of those with all words of `q`, newest first.

    A search counts only the first MAX_SEARCH characters of `q`. To signed-in users, the results
    name the user whose username is `q`, and the first page of all posts has their drafts.
    """
    text = request.args.get("q", "").strip()[:MAX_SEARCH]
    if not text:
        rows = await Post.page(before=id_after(), limit=posts.PAGE + 1)
        shown, older = cut(rows, posts.PAGE, lambda post: post.id)
        mine = current_user.signed_in and not id_after()
        drafts = await PostDraft.latest(current_user.user_id) if mine else []
        return await render_template(
            "posts/list.html", posts=shown, older=older, q="", drafts=drafts
        )
    shown, last = await search(text, before=id_after(), limit=posts.PAGE)
    person = await User.by_username(text) if current_user.signed_in else None
    return await render_template(
        "posts/list.html",
        posts=shown,
        older=next_page(str(last)) if last else None,
        q=text,
        person=person if person and not person.awaits_verification else None,
    )


@blueprint.route("/posts/new", methods=["GET", "POST"])
@carriable
@login_required
@permission_required(Permission.POSTS_WRITE)
async def new() -> Any:
    """Show the form of a new post; on POST store the post, delete its draft, and redirect (303) to
    its page. Flashes and logs nothing.

    Counts towards the limit of posts; past it, the form with 429. Errors show the form with 422. A
    POST with `preview` stores nothing and shows the form with the rendered text above it. A POST
    with `draft=save` stores the text as a draft, which fills the form of a GET, and one with
    `draft=discard` deletes it; both redirect (303) to the form. `carriable`: if nobody is signed
    in, the submitted form is kept through the sign-in.
    """
    draft = await PostDraft.get(current_user.user_id)
    form = await PostForm.from_request(obj=draft)
    with form.catch_retry_later():
        if form.posted:
            if form.draft.data:
                return await _save_draft(form, current_user.user_id, "/posts/new")
            if form.preview.data:
                return await _preview(form, None, draft)
            await _count("post", settings().limit_post)
            by = current_user.actor
            post = await Post.write(form.title.data or "", form.body.data or "", by=by)
            return see_other(f"/posts/{post.id}")
    page = await render_template(
        "posts/edit.html", form=form, post=None, draft=draft, opened=page_id()
    )
    return page, form.status, form.headers


@blueprint.get("/posts/<post_id>")
async def show(post_id: str) -> Any:
    """Show the post with a page of its comments and an empty form for another. 404 for an unknown
    post; 503 if too many texts are being rendered."""
    return await _page(await _find(post_id), CommentForm())


@blueprint.route("/posts/<post_id>/edit", methods=["GET", "POST"])
@carriable
@login_required
async def edit(post_id: str) -> Any:
    """Show the form of an existing post; on POST store the changes, delete their draft, and
    redirect (303) to its page.

    For those whom `policy.may_edit` allows; others get an error (`_refuse`). Errors of the form
    show it with 422. Counts towards the limit of posts; past it, the form with 429. A POST with
    `preview` or `draft` does the same as for a new post. 404 if the post does not exist or was
    deleted meanwhile.
    """
    post = await _find(post_id)
    if not policy.may_edit(current_user, post):
        _refuse(post)
    draft = await PostDraft.get(post.id)
    form = await PostForm.from_request(obj=draft or post)
    with form.catch_retry_later():
        if form.posted:
            if form.draft.data:
                return await _save_draft(form, post.id, f"/posts/{post.id}/edit")
            if form.preview.data:
                return await _preview(form, post, draft)
            await _count("post", settings().limit_post)
            by = current_user.actor
            if not await post.revise(form.title.data or "", form.body.data or "", by=by):
                abort(404)
            return see_other(f"/posts/{post.id}")
    page = await render_template(
        "posts/edit.html", form=form, post=post, draft=draft, opened=page_id()
    )
    return page, form.status, form.headers


@blueprint.post("/posts/<post_id>/draft")
@login_required
@permission_required(Permission.POSTS_WRITE)
async def save_typed(post_id: str) -> Any:
    """Save the text that is being typed as the draft of a post, or with the id "new" of a new one,
    and answer with a piece of HTML that says when, or why not.

    Nothing is stored if that would replace a draft that was saved elsewhere, or bring back one that
    was published or discarded (409, see `autosave`), if a text is not valid (422), and past the
    limit (429). Without any text, the answer says when the draft was saved. Raises Forbidden and
    answers 403 as `_refuse` does; 404 for an unknown post.
    """
    post = None if post_id == "new" else await _find(post_id)
    if post and not policy.may_edit(current_user, post):
        _refuse(post)
    form = await DraftForm.from_request()
    draft_id = post.id if post else current_user.user_id
    status, headers = 200, {}
    with form.catch_retry_later():
        if form.posted and (form.title.data or form.body.data):
            await _count("typed draft", DRAFTS)
            await _autosave(form, draft_id)
    if form.errors:
        status, headers = form.status, form.headers
    page = await render_template(
        "posts/draft.html", form=form, draft=await PostDraft.get(draft_id), opened=page_id()
    )
    return page, status, headers


@blueprint.post("/posts/<post_id>/delete")
@returns_to(show, "/posts/{post_id}")
@login_required
async def delete(post_id: str) -> Any:
    """Delete the post with its comments, and redirect (303) to the list of posts with a message.

    If the user is not its author, `Post.remove` notifies the author. Raises Forbidden unless the
    user is allowed to (`policy.may_delete`). 404 for an unknown post.
    """
    post = await _find(post_id)
    if not policy.may_delete(current_user, post):
        raise Forbidden(Permission.POSTS_MODERATE)
    await post.remove(by=current_user.actor)
    await flash(_("The post was deleted."), "success")
    return see_other("/posts")


async def show_with_comment(post_id: str) -> Any:
    """Return the page of the post with the submitted comment in its form."""
    return await _page(await _find(post_id), await CommentForm.from_request())


@blueprint.post("/posts/<post_id>/comments")
@returns_to(show_with_comment, "/posts/{post_id}")
@carriable
@login_required
@permission_required(Permission.POSTS_WRITE)
async def comment(post_id: str) -> Any:
    """Store a comment on the post, which notifies its author, and redirect (303) to it on the page
    of the post; errors show that page with the form (422).

    Counts towards the limit of comments; past it, 429. 404 if the post does not exist or was
    deleted meanwhile.
    """
    post = await _find(post_id)
    form = await CommentForm.from_request()
    with form.catch_retry_later():
        if form.posted:
            await _count("comment", settings().limit_comment)
            written = await Comment.write(post, form.body.data or "", by=current_user.actor)
            if written is None:
                abort(404)
            return see_other(f"/posts/{post.id}#comment-{written.id}")
    return await _page(post, form)


async def show_commented(comment_id: str) -> Any:
    """Return the page of the post to which the comment belongs, for `returns_to`, and set its
    address. 404 for an unknown comment."""
    found = await Comment.get(id_or_404(comment_id)) or abort(404)
    g.form_page_address = f"/posts/{found.post_id}"
    return await _page(await _find(str(found.post_id)), CommentForm())


@blueprint.post("/comments/<comment_id>/delete")
@returns_to(show_commented, "/posts")
@login_required
async def delete_comment(comment_id: str) -> Any:
    """Delete the comment and redirect (303) to its post with a message.

    Raises Forbidden unless the user is allowed to (`policy.may_delete`). 404 for an unknown
    comment.
    """
    found = await Comment.get(id_or_404(comment_id))
    if found is None:
        abort(404)
    if not policy.may_delete(current_user, found):
        raise Forbidden(Permission.POSTS_MODERATE)
    await found.remove(by=current_user.actor)
    await flash(_("The comment was deleted."), "success")
    return see_other(f"/posts/{found.post_id}")


async def _count(what: str, limit: RateLimitItem) -> None:
    """Count a post or comment of the user. Raises RateLimitExceeded past the limit."""
    await rate_limits.count(what, (str(current_user.user_id), limit))


async def _save_draft(form: PostForm, draft_id: PydanticObjectId, page: str) -> Any:
    """Store or discard the draft, and redirect (303) to the page of the form. Counts a saved draft:
    raises RateLimitExceeded past the limit."""
    if form.draft.data == "discard":
        await PostDraft.save_text(draft_id, "", "", by=current_user.actor)
    else:
        await _count("draft", DRAFTS)
        texts = form.title.data or "", form.body.data or ""
        await PostDraft.save_text(draft_id, *texts, by=current_user.actor)
    return see_other(page)


async def _autosave(form: DraftForm, draft_id: PydanticObjectId) -> None:
    """Store the draft of the form, or refuse the form with 409."""
    texts, by = (form.title.data or "", form.body.data or ""), current_user.actor
    version, opened = parse_id(form.version.data), parse_id(form.opened.data)
    if not await autosave(draft_id, *texts, version=version, opened=opened, by=by):
        form.refuse(
            _(
                "The draft was saved, published or discarded elsewhere. This text is kept in this "
                "tab only. Use “Save draft” to save it, or reload the page to see what is stored."
            ),
            status=409,
        )


async def _preview(form: PostForm, post: Post | None, draft: PostDraft | None) -> str:
    """Return the page of the form with its text rendered above it. Counts a preview: raises
    RateLimitExceeded past the limit, and RetryLater if too many texts are being rendered."""
    await _count("preview", PREVIEWS)
    preview = await markdown().render(form.body.data or "", below=2)
    return await render_template(
        "posts/edit.html", form=form, post=post, draft=draft, opened=page_id(), preview=preview
    )


async def _find(post_id: str) -> Post:
    """Return the post with its author, or answer 404."""
    return await Post.with_author(id_or_404(post_id)) or abort(404)


def _refuse(post: Post) -> None:
    """Refuse to edit the post: raise Forbidden for its author, who lacks a permission that can be
    granted; answer 403 for others, who can never edit it. Never returns."""
    if policy.owns(current_user, post):
        raise Forbidden(Permission.POSTS_WRITE)
    abort(403, _("Only its author can change a post."))


async def _page(post: Post, form: CommentForm) -> Any:
    """Return the page of the post with a page of its comments and the form, its status and headers.
    Raises RetryLater if too many texts are being rendered."""
    rows = await Comment.page(post.id, after=id_after(), limit=comments.PAGE + 1)
    shown, older = cut(rows, comments.PAGE, lambda row: row.id)
    page = await render_template(
        "posts/show.html",
        post=post,
        body=await markdown().render(post.body),
        comments=shown,
        older=older,
        form=form,
    )
    return page, form.status, form.headers
