"""How often something has happened, in each hour of the last month."""
