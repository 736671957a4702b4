"""Forms for posts and comments."""

from typing import Any

from wtforms import HiddenField, StringField, SubmitField, TextAreaField
from wtforms.validators import DataRequired, Length

from quartapp.forms.base import Form, bidi_free, printable, tidy
from quartapp.i18n import lazy_gettext as _


class PostForm(Form):
    title = StringField(
        _("Title"),
        filters=[tidy],
        validators=[
            DataRequired(_("Enter a title.")),
            Length(max=200, message=_("A title has at most 200 characters.")),
            printable,
            bidi_free,
        ],
    )
    body = TextAreaField(
        _("Text"),
        description=_(
            "You can use Markdown: **bold**, *italic*, [link](https://example.org), "
            "# heading, - list, > quote and `code`."
        ),
        filters=[tidy],
        validators=[
            DataRequired(_("Enter the text of the post.")),
            Length(max=20_000, message=_("A post has at most 20,000 characters.")),
            printable,
        ],
    )
    preview = SubmitField(_("Preview"))
    # "save" stores a draft, "discard" deletes it.
    draft = StringField(_("Draft"))

    def process(self, *args: Any, **kwargs: Any) -> None:
        """Bind the data to the fields. A draft may lack the title or the text, and the text of one
        that is discarded does not matter."""
        super().process(*args, **kwargs)
        fields: tuple[Any, ...] = (self.title, self.body) if self.draft.data else ()
        for each in fields:
            discarded = self.draft.data == "discard"
            kept = [rule for rule in each.validators if not isinstance(rule, DataRequired)]
            each.validators = [] if discarded else kept


class DraftForm(PostForm):
    """What the page of a post sends while its author types. It may lack the title or the text."""

    # Of the draft that the page shows, or of a page without a draft.
    version = HiddenField()
    opened = HiddenField()

    def process(self, *args: Any, **kwargs: Any) -> None:
        """Bind the data to the fields, none of which is required."""
        super().process(*args, **kwargs)
        fields: tuple[Any, ...] = (self.title, self.body)
        for each in fields:
            each.validators = [
                rule for rule in each.validators if not isinstance(rule, DataRequired)
            ]


class CommentForm(Form):
    body = TextAreaField(
        _("Your comment"),
        filters=[tidy],
        validators=[
            DataRequired(_("Enter a comment.")),
            Length(max=4_000, message=_("A comment has at most 4,000 characters.")),
            printable,
        ],
    )
