"""Pages for exporting personal data and deleting accounts."""
