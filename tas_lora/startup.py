"""What a tool imports first: signals are handled while the rest is imported, which takes seconds.

Until :func:`tas_lora.cli.run` takes over, SIGTERM and SIGINT end the process with a line and exit
code 75. A module of its own, since an import is all that may stand before other imports.
"""

from .stopping import catch_signals, end_with_launcher, leave

catch_signals(leave)
end_with_launcher()
