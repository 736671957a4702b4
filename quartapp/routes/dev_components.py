"""The page for development that shows every component of the pages in every state.

Not registered in production. It reads nothing and changes nothing, and its content is the same at
every request, so that a test can compare it with what it looked like before.
"""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import wtforms
from markupsafe import Markup
from quart import Blueprint, current_app, render_template
from wtforms import BooleanField, PasswordField, SelectField, StringField, TextAreaField
from wtforms.validators import InputRequired

from quartapp.i18n import PSEUDO, current_locale, pseudo
from quartapp.routes import icons

blueprint = Blueprint("components", __name__)

# A text between two tags.
_TEXT = re.compile(r"(?<=>)[^<>]*[^<>\s][^<>]*(?=<)")
PEOPLE = tuple(
    SimpleNamespace(username=name, id=f"{number:024x}")
    for number, name in enumerate(
        ("ada", "grace.hopper", "dorothy", "katherine", "mary", "hedy", "radia", "barbara")
    )
)


class SampleForm(wtforms.Form):
    """A form that is only shown, never sent."""

    name = StringField("Name", [InputRequired()], description="A hint below the label.")
    kind = SelectField("Role", choices={"member": "member", "moderator": "moderator"})
    password = PasswordField("Password", [InputRequired()])
    about = TextAreaField("About")
    sure = BooleanField("Keep me signed in on this device")

    @classmethod
    def rejected(cls) -> Self:
        """Return a form with errors, as a route shows it again."""
        form = cls(prefix="wrong-", data={"name": "ada lovelace"})
        form.name.errors = ["Use letters, digits, “.”, “-” and “_”."]
        form.password.errors = ["Use at least 10 characters."]
        form.about.errors = ["Use at most 500 characters."]
        return form


@blueprint.get("/dev/components")
async def components() -> str:
    """Show every component, with forms that are empty, filled and rejected."""
    filled = SampleForm(
        prefix="filled-", data={"name": "ada", "kind": "member", "about": "A text.", "sure": True}
    )
    return await render_template(
        "dev/components.html",
        icons=icons.names(Path(current_app.root_path) / "static/icons.svg"),
        people=PEOPLE,
        empty=SampleForm(prefix="empty-"),
        filled=filled,
        rejected=SampleForm.rejected(),
        translated=_translated,
    )


def _translated(html: Markup) -> Markup:
    """Return the HTML with its texts in the pseudo-locale if that is the language of the page.

    The texts of this page are examples, which no translator needs to see in the catalogs.
    """
    if current_locale() != PSEUDO:
        return html
    return Markup(_TEXT.sub(lambda found: pseudo.translate(found[0]), html))  # noqa: S704
