"""Forms: WTForms over a small base of our own. They know nothing of the database."""
