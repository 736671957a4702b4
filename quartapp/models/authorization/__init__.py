"""What an actor may do, checked inside the transaction that makes the change."""
