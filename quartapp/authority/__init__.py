"""Who may do what as of now, cheap to ask and never outrun by a revocation.

Each worker follows one change stream. What is heard on it keeps the cache of principals true; the
lease says until when the cache may be trusted; the barrier waits until no worker can trust what is
over. docs/adr/0009 has the argument.
"""
