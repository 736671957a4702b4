"""The dashboard: what is happening now, and in the last day and month."""
