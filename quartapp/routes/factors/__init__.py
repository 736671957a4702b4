"""Pages of second factors and passkeys."""
