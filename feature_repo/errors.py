"""The errors that a command shows to its user without a stack trace."""


class InputError(ValueError):
    """Something the user gave is wrong: says what came, what was expected, what fixes it.

    The command line ends with exit code 2.
    """


class ArtifactError(InputError):
    """An artifact is missing, foreign or changed: says which id was wanted, which was found."""


class StoreUnavailableError(RuntimeError):
    """A store cannot be reached, is full or is locked: says which and why.

    The command line ends with exit code 1: the same command may succeed later.
    """


class RayUnavailableError(RuntimeError):
    """Ray cannot be started or joined: says why and what it needs.

    The command line ends with exit code 1: the same command may succeed later.
    """
