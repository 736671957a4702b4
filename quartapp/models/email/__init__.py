"""The outbox, and the budget of each mailbox."""
