"""The live layer: one WebSocket for each open page, which receives changes as they happen."""
