"""Email messages and the ways to send them."""
