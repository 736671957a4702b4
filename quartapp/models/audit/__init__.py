"""The audit log, and the list of activity that users see."""
