"""What a tool imports first: signals are handled while the rest is imported, which takes seconds.

Until :func:`tas_lora.cli.run` takes over, SIGTERM and SIGINT end the process with a line and exit
code 75. A module of its own, since an import is all that may stand before other imports.
"""

from . import stopping

stopping.catch_signals(stopping.leave)
stopping.end_with_launcher()
