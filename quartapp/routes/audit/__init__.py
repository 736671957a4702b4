"""Pages of the audit log and of a user's own activity."""
