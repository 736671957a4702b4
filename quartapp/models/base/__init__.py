"""The base classes and helpers that all documents use."""
