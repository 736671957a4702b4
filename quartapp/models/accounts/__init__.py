"""Accounts: users, their passwords and email addresses, and the tokens sent to them."""
