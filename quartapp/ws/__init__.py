"""The live layer: open pages are told what changes for them, and are hung up on when it must be."""
