"""The settings of a deployment, read from the environment and from `.env`.

`fields` declares and describes them, `values` says what each kind of value looks like, and
`settings` reads them. `docs/settings.md` is written from the descriptions: see `reference`.
"""

from quartapp.settings.settings import Settings
from quartapp.settings.values import LOOPBACK, MAIL_SHARES, StartError

__all__ = ["LOOPBACK", "MAIL_SHARES", "Settings", "StartError"]
