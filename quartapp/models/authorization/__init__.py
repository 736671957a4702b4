"""What an actor may do, checked in the transaction that does it."""
