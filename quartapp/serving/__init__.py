"""`quartapp serve`: a launcher process, a fork server and the worker processes that it forks."""
