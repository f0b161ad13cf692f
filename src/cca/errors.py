"""The errors that a user can mend, and the command that mends a package that is missing."""

DISTRIBUTION = "constructive-circuit-amplification"


class InputError(Exception):
    """Bad input: the message names the input and the remedy; the command prints it and exits with code 2."""


class NothingToLearnError(InputError):
    """A round of the method found no pivot, or no component that favours the right tokens."""


class TooLargeError(InputError):
    """The least that can be computed at once does not fit in memory."""


def install_command(*packages: str) -> str:
    """What installs `packages`, in the versions that this package's extras ask for.

    It names them themselves, for the interpreter that runs: this package is on no index, and may be here as a clone or
    as a wheel.
    """
    import re
    import shlex
    import sys
    from importlib.metadata import PackageNotFoundError, requires

    try:
        wanted = [requirement.partition(";")[0].strip() for requirement in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:  # imported from where it lies, without having been installed
        wanted = []
    by_name = {re.split(r"[\s\[<>=!~(]", text)[0]: text for text in wanted}
    return shlex.join([sys.executable or "python", "-m", "pip", "install", *(by_name.get(p, p) for p in packages)])
