"""The one error that a user can mend."""


class InputError(Exception):
    """Bad input: the message names the input and the remedy; the command prints it and exits with code 2."""
