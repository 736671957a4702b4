"""Pages of posts and comments."""
