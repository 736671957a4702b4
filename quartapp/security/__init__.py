"""Passwords, encryption and WebAuthn. Nothing here reads the database or a request."""
