"""The errors that a user can mend."""


class InputError(Exception):
    """Bad input: the message names the input and the remedy; the command prints it and exits with code 2."""


class NothingToLearnError(InputError):
    """A round of the method found no pivot, or no component that favours the right tokens."""
