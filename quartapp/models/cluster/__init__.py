"""Heartbeats of the workers, and the barrier marks that workers acknowledge."""
