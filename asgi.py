from quartapp import create_app, wire

# hypercorn imports this in each of its processes before it serves.
wire.harden()
app = create_app()
