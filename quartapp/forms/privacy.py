"""The form for deleting an account."""

from wtforms import RadioField, StringField, ValidationError
from wtforms.validators import DataRequired

from quartapp.forms.base import Form, tidy
from quartapp.i18n import gettext
from quartapp.i18n import lazy_gettext as _

KEEP, REMOVE = "keep", "remove"


class DeleteForm(Form):
    """Deleting an account. Before validating, pass the username that the user must enter to
    `expect`. Any other is a validation error."""

    username = StringField(
        _("Username"),
        filters=[tidy],
        validators=[DataRequired(_("Enter the username to confirm."))],
    )
    posts = RadioField(
        _("Posts and comments"),
        choices=lambda: {
            KEEP: gettext("Keep them, shown as written by a deleted user"),
            REMOVE: gettext("Delete them, including the comments of others on the posts"),
        },
        default=KEEP,
    )
    _expected = ""

    def expect(self, username: str) -> None:
        """Set the username that the user must enter."""
        self._expected = username

    def validate_username(self, field: StringField) -> None:
        """Raise ValidationError unless the text equals the username passed to `expect`."""
        if field.data != self._expected:
            raise ValidationError(_("Enter %(name)s exactly as shown.", name=self._expected))

    @property
    def with_posts(self) -> bool:
        """Whether the posts and comments are to be deleted as well."""
        return self.posts.data == REMOVE
