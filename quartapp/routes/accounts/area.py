"""Pages of the settings area: security, profile and preferences.

If the session ends, or a permission is lost, while a form is stored, SessionOver or RightsChanged
goes to the error handler.
"""

from __future__ import annotations

from typing import Any

from quart import Blueprint, flash, render_template
from quart_auth import login_required
from wtforms.fields.choices import SelectChoice  # type: ignore[attr-defined]  # not in the stubs

from quartapp.activities import EMAIL_GROUPS
from quartapp.auth import browser_timezone, current_user, signed_in_user
from quartapp.forms.profile import PreferencesForm, ProfileForm
from quartapp.i18n import gettext as _
from quartapp.i18n import set_locale
from quartapp.models.accounts import email_address
from quartapp.models.accounts.preferences import Preferences
from quartapp.models.accounts.profile import change_preferences, change_profile
from quartapp.models.sessions.session import Session
from quartapp.policy import Permission, may
from quartapp.routes.redirects import see_other
from quartapp.runtime import runtime

blueprint = Blueprint("account_area", __name__)


@blueprint.get("/account/security")
@login_required
async def security() -> str:
    """Show the state of the password, the email address, the second factors and the sessions, each
    with a link to the page that changes it."""
    user = await signed_in_user()
    return await render_template(
        "accounts/security.html",
        user=user,
        unconfirmed=email_address.unconfirmed(user),
        sessions=len(await Session.of_user(user.id)),
    )


@blueprint.route("/account/profile", methods=["GET", "POST"])
@login_required
async def profile() -> Any:
    """Change what other users see of the user. GET shows the form.

    The POST stores it and redirects (303) back with a message; errors are shown on the form (422).
    Logs nothing, and records no audit event.
    """
    user = await signed_in_user()
    form = await ProfileForm.from_request(display_name=user.display_name, about=user.about)
    if form.posted:
        await change_profile(
            user.id,
            display_name=form.display_name.data or "",
            about=form.about.data or "",
            by=current_user.actor,
        )
        await flash(_("Your profile was saved."), "success")
        return see_other("/account/profile")
    return await render_template("accounts/profile_form.html", form=form, user=user), form.status


@blueprint.route("/account/preferences", methods=["GET", "POST"])
@login_required
async def preferences() -> Any:
    """Change the language, the time zone, the theme and what is sent by email. GET shows the form.

    The POST stores them and redirects (303) back with a message in the new language. Drops the
    user's sessions from the cache of this worker, which shows them from then on; other workers do
    so when the change stream reports the change. Errors are shown on the form (422). Logs nothing,
    and records no audit event.
    """
    user = await signed_in_user()
    stored = {name: value or "" for name, value in user.preferences.model_dump().items()}
    form = await PreferencesForm.from_request(data=stored)
    decides = may(current_user, Permission.USERS_MANAGE)
    form.emailed.choices = [
        SelectChoice(*group) for group in EMAIL_GROUPS.items() if group[0] != "requests" or decides
    ]
    form.timezone.offer(_browsers_zone())
    if form.posted:
        wished = Preferences(
            language=form.language.data or None,
            timezone=form.timezone.data or None,
            theme=form.theme.data or None,
            emailed=form.emailed.data or [],
        )
        await change_preferences(user.id, wished, by=current_user.actor)
        runtime().principal_cache.drop_user(user.id)
        if wished.language:
            set_locale(wished.language)
        await flash(_("Your preferences were saved."), "success")
        return see_other("/account/preferences")
    return await render_template("accounts/preferences.html", form=form, user=user), form.status


def _browsers_zone() -> str | None:
    """Return the name of the zone that timezone.js has stored, or None if it names none."""
    found = browser_timezone()
    return found.key if found else None
