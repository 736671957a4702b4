"""The applications of the other stacks. They run in the environment of bench/peers/requirements.txt
and import nothing of quartapp; they only render its templates.

Each is what its own documentation shows, plus the page and the JSON that are measured. When it
starts, it creates the users `peer0` to `peer<COUNT - 1>` with the role `member`.
"""
