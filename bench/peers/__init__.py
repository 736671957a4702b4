"""Compare quartapp with the same job in other stacks. See `bench.peers.__main__`."""
