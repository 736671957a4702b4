"""What all documents are built from."""
