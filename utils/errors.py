"""The user's mistakes, told in one sentence. Every room may import this module; it imports nothing of ours."""


class UserError(Exception):
    """Something the user gave is wrong, and they can mend it.

    The message is the one sentence that they read: what was given, what was expected, where. Entry scripts print it
    without a traceback and exit with code 2.
    """
