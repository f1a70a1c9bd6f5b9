"""Errors in the middle of a training that are not the fault of its code."""


class StatedError(ValueError):
    """
    An error whose message says what is wrong and what to do, also in the middle of a training.

    A command prints the message without a traceback. Where a function of the user has failed, its own error is the
    cause, and the lines of the user's code are printed too.
    """
