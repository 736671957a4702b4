"""What a name may look like: for forms, commands and imports alike."""

import re

# Of users and of roles. No @, so that a login is one of a username and an address.
NAME = re.compile(r"\A[A-Za-z0-9](?:[A-Za-z0-9._-]{0,30}[A-Za-z0-9])?\Z")
NAME_RULE = (
    "Use 1 to 32 letters, digits, dots, dashes or underscores, with a letter or digit at both ends."
)

# Enough to catch a slip of the fingers; whether an address works is known when mail arrives.
_NEVER = r"@\s\x00-\x1f\x7f-\x9f<>()\[\],;:\\\""
EMAIL = re.compile(rf"\A[^{_NEVER}]{{1,64}}@[^{_NEVER}]{{1,190}}\.[^{_NEVER}.]{{2,63}}\Z")
EMAIL_RULE = "This does not look like an e-mail address."
