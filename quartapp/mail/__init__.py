"""Letters: `postman` takes them from the outbox, `letters` words them, `carriers` carry them."""
