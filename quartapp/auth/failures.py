"""Failed attempts to authenticate, in the log and in the statistics."""

from quartapp.auth.device import remote_address
from quartapp.log import log
from quartapp.models.statistics import hourly_count
from quartapp.models.statistics.hourly_count import Counted


def report_failed_attempt(**words: str | int | None) -> None:
    """Log `authn_login_fail` with the client's address and these words, and count the failure for
    the dashboard. Call it within a request."""
    log.warning("authn_login_fail", **words, ip=remote_address())
    hourly_count.add(Counted.FAILURES)
