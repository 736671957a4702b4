"""Leaving: one's own account, or that of somebody else."""

from wtforms import RadioField, StringField, ValidationError
from wtforms.validators import DataRequired

from quartapp.forms.base import Form, tidy

KEEP, REMOVE = "keep", "remove"


class DeleteForm(Form):
    """Deletes the account of whoever it is asked to `expect`."""

    username = StringField(
        "Username",
        filters=[tidy],
        validators=[DataRequired("Type the username, so that nothing is deleted by mistake.")],
    )
    posts = RadioField(
        "Posts and comments",
        choices={
            KEEP: "Keep them, as by a deleted user",
            REMOVE: "Remove them, with what others said below the posts",
        },
        default=KEEP,
    )
    _expected = ""

    def expect(self, username: str) -> None:
        self._expected = username

    def validate_username(self, field: StringField) -> None:
        if field.data != self._expected:
            raise ValidationError(f"Type {self._expected}, exactly so.")

    @property
    def with_posts(self) -> bool:
        return self.posts.data == REMOVE
