"""Which sessions are valid now and what their users may do, without a query for each request.

`change_stream` follows the database. `principal_cache` keeps the users of recent sessions in memory
and drops an entry when the stream reports a change of it. `lease` limits how long the cache may be
used if the stream is late or lost. `barrier` waits, after a revocation, until no worker can use an
old entry, and `membership` knows which workers there are. `session_rule` decides whether a session
is valid, and `session_states` reads what the rule needs. docs/adr/0090 has the argument.
"""
