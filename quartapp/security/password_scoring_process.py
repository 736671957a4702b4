"""The process of `password_scoring`: answers each line on its standard input with one line.

It is run as a program, and imports nothing of the application, so that it starts within a tenth of
a second and needs little memory.
"""

import json
import os
import signal
import sys

from zxcvbn_rs_py import zxcvbn

IDLE_SECONDS = 60
NICE = 10


def main() -> None:
    """Answer `[password, words]` with `[score, warning]`, both JSON, until the input ends.

    Closes all files but the standard ones, ignores SIGINT, SIGTERM and SIGHUP, and lowers its
    priority. Ends by SIGALRM after a minute without a question.
    """
    # uvloop passes on inheritable files of the worker, such as the socket on which hypercorn
    # accepts. Held here, it would accept connections that no worker serves.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # It ends with the worker, whose end closes the input: not before, when a terminal or a
    # supervisor sends a signal to all processes at once.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    signal.alarm(IDLE_SECONDS)
    for line in sys.stdin:
        signal.alarm(0)
        print(json.dumps(score(*json.loads(line))), flush=True)
        signal.alarm(IDLE_SECONDS)


def score(password: str, words: list[str]) -> tuple[int, str]:
    """Return zxcvbn's score from 0 to 4 and its warning or an empty text; 0 if zxcvbn panics."""
    try:
        result = zxcvbn(password, words)
    except BaseException as error:
        # A panic of the library, which is not an Exception. Such a password is not accepted.
        if type(error).__name__ != "PanicException":
            raise
        return 0, ""
    warning = str(result.feedback.warning) if result.feedback and result.feedback.warning else ""
    return int(result.score), warning


if __name__ == "__main__":
    main()
