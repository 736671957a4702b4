"""The form of the component page."""

from typing import Self

from wtforms import BooleanField, PasswordField, SelectField, StringField, TextAreaField
from wtforms.validators import InputRequired

from quartapp.forms.base import Form


class SampleForm(Form):
    name = StringField("Name", [InputRequired()], description="A hint below the label.")
    kind = SelectField("Role", choices=[("member", "member"), ("moderator", "moderator")])
    password = PasswordField("Password", [InputRequired()])
    about = TextAreaField("About")
    sure = BooleanField("Keep me signed in on this device")

    @classmethod
    def rejected(cls) -> Self:
        """Return a form with errors, as a route shows it again."""
        form = cls(data={"name": "ada lovelace"})
        form.name.errors = ["Use letters, digits, “.”, “-” and “_”."]
        form.password.errors = ["Use at least 10 characters."]
        form.about.errors = ["Use at most 500 characters."]
        return form
