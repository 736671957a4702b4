"""The forms, by noun. They use WTForms and `forms.base`, and never the database."""
