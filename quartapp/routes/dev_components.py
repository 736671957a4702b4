"""The page for development that shows every component of the pages in every state.

Not registered in production. It reads nothing and changes nothing, and its content is the same at
every request, so that a test can compare it with what it looked like before.
"""

from pathlib import Path
from types import SimpleNamespace

from quart import Blueprint, current_app, render_template

from quartapp.forms.dev import SampleForm
from quartapp.routes import icons

blueprint = Blueprint("components", __name__)

PEOPLE = tuple(
    SimpleNamespace(username=name, id=f"{number:024x}")
    for number, name in enumerate(
        ("ada", "grace.hopper", "dorothy", "katherine", "mary", "hedy", "radia", "barbara")
    )
)


@blueprint.get("/dev/components")
async def components() -> str:
    """Show the components."""
    filled = SampleForm(data={"name": "ada", "kind": "member", "about": "A text.", "sure": True})
    return await render_template(
        "dev/components.html",
        icons=icons.names(Path(current_app.root_path) / "static/icons.svg"),
        people=PEOPLE,
        empty=SampleForm(),
        filled=filled,
        rejected=SampleForm.rejected(),
    )
