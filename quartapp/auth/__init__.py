"""Authentication of requests: who sends them, what they may do, and how often."""

from quartapp.auth.current_user import (
    CurrentUser,
    current_user,
    init_app,
    live_permission,
    load_current_user,
    signed_in_user,
    unwrapped_current_user,
)
from quartapp.auth.decorators import (
    CODE_FIELD,
    PASSWORD_FIELD,
    Forbidden,
    ReauthenticationRequired,
    fresh_login_required,
    permission_required,
)
from quartapp.auth.device import (
    browser_timezone,
    device_name,
    known_browser,
    preload_user_agent_parser,
    remember_browser,
    remote_address,
    timezone_cookie_template,
)
from quartapp.auth.enforcement import wait_until_enforced
from quartapp.auth.failures import report_failed_attempt
from quartapp.auth.reauthentication import (
    IncorrectCode,
    IncorrectPassword,
    factor_attempt,
    password_attempt,
    reauthenticate,
    renew_session,
    use_factor_code,
)

__all__ = [
    "CODE_FIELD",
    "PASSWORD_FIELD",
    "CurrentUser",
    "Forbidden",
    "IncorrectCode",
    "IncorrectPassword",
    "ReauthenticationRequired",
    "browser_timezone",
    "current_user",
    "device_name",
    "factor_attempt",
    "fresh_login_required",
    "init_app",
    "known_browser",
    "live_permission",
    "load_current_user",
    "password_attempt",
    "permission_required",
    "preload_user_agent_parser",
    "reauthenticate",
    "remember_browser",
    "remote_address",
    "renew_session",
    "report_failed_attempt",
    "signed_in_user",
    "timezone_cookie_template",
    "unwrapped_current_user",
    "use_factor_code",
    "wait_until_enforced",
]
