"""Texts in the language of the reader, from gettext catalogs.

In modules whose functions run while a page is written:

    from quartapp.i18n import gettext as _, ngettext

    _("Role %(role)s revoked.", role=name)
    ngettext("%(num)s session ended.", "%(num)s sessions ended.", count)

In modules that create texts before the reader is known (labels of forms, constants, errors of the
models), import `lazy_gettext as _`: the text is translated when `str` is called.

In templates:

    {{ _("Sign in") }}
    {% trans name=user.username %}Hello, {{ name }}{% endtrans %}
    {% trans num=count %}{{ num }} session{% pluralize %}{{ num }} sessions{% endtrans %}

A sentence is one text, never a sum of parts, because other languages order the words differently.
Words that change are `%(names)s`, which are escaped in templates. Texts of templates are HTML.

The English text is the id of a text. `python -m quartapp.i18n` extracts the texts into the
catalogs in `quartapp/translations` and compiles them. The package imports nothing of the rest of
the application.
"""

from quartapp.i18n.durations import duration
from quartapp.i18n.locales import (
    DEFAULT,
    LOCALES,
    PSEUDO,
    current_locale,
    negotiate,
    set_locale,
    use_locale,
)
from quartapp.i18n.texts import (
    LazyText,
    gettext,
    lazy_gettext,
    lazy_ngettext,
    library_text,
    ngettext,
)

__all__ = [
    "DEFAULT",
    "LOCALES",
    "PSEUDO",
    "LazyText",
    "current_locale",
    "duration",
    "gettext",
    "lazy_gettext",
    "lazy_ngettext",
    "library_text",
    "negotiate",
    "ngettext",
    "set_locale",
    "use_locale",
]
