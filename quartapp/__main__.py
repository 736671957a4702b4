"""The command line as a process: `python -m quartapp`, and the script `quartapp`."""

import os
import sys

from quartapp.cli import main


def run() -> None:
    """Run the command line, and end the process with its exit status.

    When a process ends normally, the database driver waits for its threads, which takes up to half
    a second. Commands have nothing left to do then, so they end without that; `serve`, which has
    processes of its own, does not.
    """
    try:
        main(prog_name="quartapp")
    except SystemExit as end:
        if sys.argv[1:2] == ["serve"] or not isinstance(end.code, int | None):
            raise
        status = end.code or 0
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            # The program that reads the output has closed it.
            status = status or 1
        os._exit(status)


if __name__ == "__main__":
    run()
