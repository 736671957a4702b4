"""Invitations to create an account."""
