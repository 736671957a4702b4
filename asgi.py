import sys

from quartapp import create_app, wire
from quartapp.settings import StartError

# hypercorn imports this in each of its processes before it serves.
wire.harden()
try:
    app = create_app()
except StartError as error:
    sys.exit(f"quartapp: {error}")
