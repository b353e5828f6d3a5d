"""The one exception raised for mistakes of the person who calls, not of the program."""


class UserError(ValueError):
    """A mistake in a config, a file or an argument.

    The message is one line: what was wrong, what was expected, what to do. The tools print it
    without a traceback and exit with code 2.
    """
