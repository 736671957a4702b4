"""Background tasks of a worker, one class in each module."""
