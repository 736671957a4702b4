"""The sentence of an entry of the audit log."""

from collections.abc import Mapping
from typing import Any

from quartapp.activities import catalogue, readable
from quartapp.i18n import gettext
from quartapp.i18n import lazy_gettext as _
from quartapp.models.audit.activity import text
from quartapp.models.audit.event import Event
from quartapp.models.base.references import linked_id
from quartapp.models.factors.factor import described


def sentence(event: Event) -> str:
    """Return the sentence of the entry without a full stop, for the operator % with `words`.

    An activity that has none, such as one of a newer version or of an extension that is not
    installed, gets a sentence that names it.
    """
    known = catalogue.log_sentence(event.verb, automatic=event.automatic)
    if known is None:
        return _("%(actor)s: %(what)s, %(subject)s") if event.subject else _("%(actor)s: %(what)s")
    actor, subject = event.actor, event.subject
    own = actor is not None and subject is not None and linked_id(actor) == linked_id(subject)
    return known.own if own and known.own else known.sentence


def words(
    event: Event, *, actor: Any, subject: Any, erased: Any, **instead: Any
) -> Mapping[str, Any]:
    """Return the words for the sentence of the entry: the details as texts, those in `instead`
    replaced, the actor, the subject and what was done. Each word that is missing or None is
    `erased`."""
    details = readable(event.details)
    if details.get("factor"):
        details["factor"] = described(details["factor"])
    what = text(event) or event.verb.replace(".", " ").replace("_", " ")
    return _Words(erased, {**details, **instead, "actor": actor, "subject": subject, "what": what})


def plain_text(event: Event) -> str:
    """Return the sentence of an entry whose actor and subject are fetched, as plain text."""
    actor, subject = name_of(event.actor) or actor_words(event), name_of(event.subject)
    given = words(event, actor=actor, subject=subject, erased=gettext("[erased]"))
    return str(sentence(event)) % given


def name_of(person: Any) -> str:
    """Return the username of a fetched person, "deleted user" for a mere link, and an empty text
    for None."""
    return "" if person is None else getattr(person, "username", gettext("deleted user"))


def actor_words(event: Event) -> str:
    """Return "The system" for an event that no person did, else "An operator", in the current
    language. For events without an actor."""
    return gettext("The system") if event.automatic else gettext("An operator")


class _Words(dict[str, Any]):
    def __init__(self, missing: Any, words: Mapping[str, Any]) -> None:
        super().__init__({name: word for name, word in words.items() if word is not None})
        self._missing = missing

    def __missing__(self, name: str) -> Any:
        return self._missing
