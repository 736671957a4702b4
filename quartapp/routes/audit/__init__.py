"""Pages of the audit log and of one's activity."""
