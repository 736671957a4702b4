"""Imported by the process from which `tests.people` forks servers and commands.

It imports and builds what they would otherwise import and build each time they start.
"""

import gc

from quartapp import auth, validation
from quartapp.cli import demo, roles, users
from quartapp.serving import fork_server, launcher
from tests import people

PRELOADED = (demo, roles, users, fork_server, launcher, people)

auth.preload_user_agent_parser()
validation.preload()
# Otherwise the garbage collector of each process would write to the memory that they share.
gc.collect()
gc.freeze()
