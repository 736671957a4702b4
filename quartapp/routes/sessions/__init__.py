"""Pages of sessions: signing in and out."""
