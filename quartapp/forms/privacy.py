"""The form for deleting an account."""

from wtforms import RadioField, StringField, ValidationError
from wtforms.validators import DataRequired

from quartapp.forms.base import Form, tidy

KEEP, REMOVE = "keep", "remove"


class DeleteForm(Form):
    """Deleting an account. Before validating, pass the username that the user must enter to
    `expect`. Any other is a validation error."""

    username = StringField(
        "Username",
        filters=[tidy],
        validators=[DataRequired("Enter the username to confirm.")],
    )
    posts = RadioField(
        "Posts and comments",
        choices={
            KEEP: "Keep them, shown as written by a deleted user",
            REMOVE: "Delete them, including the comments of others on the posts",
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
            raise ValidationError(f"Enter {self._expected} exactly as shown.")

    @property
    def with_posts(self) -> bool:
        """Whether the posts and comments are to be deleted as well."""
        return self.posts.data == REMOVE
