"""Pages of invitations."""
