"""ASGI middleware, one class in each module."""
