"""The connection to MongoDB: client, transactions, change feed, and the embedded server."""
