"""Pages for exporting personal data and for deleting accounts."""
