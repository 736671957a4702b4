"""Sessions: one for each device on which a user is signed in."""
