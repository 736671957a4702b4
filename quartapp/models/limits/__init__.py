"""Counters and failed attempts, shared by all workers through the database."""
