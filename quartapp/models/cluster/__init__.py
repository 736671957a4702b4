"""The workers that serve, and the barrier marks that they acknowledge."""
