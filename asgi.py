import sys

from quartapp import create_app
from quartapp.serving import patch_hypercorn
from quartapp.settings import Settings, StartError

# hypercorn imports this module in each of its processes before it serves.
try:
    settings = Settings.load()
    patch_hypercorn(settings)
    app = create_app(settings)
except StartError as error:
    sys.exit(f"quartapp: {error}")
