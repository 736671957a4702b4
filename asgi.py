import sys

from quartapp import create_app
from quartapp.serving import hypercorn_latency, hypercorn_security
from quartapp.settings import Settings, StartError

# hypercorn imports this module in each of its processes before it serves.
hypercorn_security.install()
try:
    settings = Settings.load()
    if settings.fast_path:
        hypercorn_latency.install()
    app = create_app(settings)
except StartError as error:
    sys.exit(f"quartapp: {error}")
