"""The errors that this package raises on purpose. None of them means a fault of the package."""


class UserError(ValueError):
    """The caller requested something that is not possible; the message names cause and remedy.

    The command line prints the message in one line and exits with code 2, as it does for
    `DataUnavailableError` and, while a run starts, for `OSError`. Every other exception keeps its
    traceback, because it is a fault of the program.
    """


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the caller named does not exist; the message says how to name it."""


class MissingPackageError(UserError, ImportError):
    """A package that the caller's request needs is not installed; the message says which."""


class DataUnavailableError(RuntimeError):
    """The images cannot be downloaded or read on this machine; the message names the remedy."""


class NotSavedError(RuntimeError):
    """A checkpoint could not be saved; the message names the folder, the cause and the remedy."""


class NonFiniteLossError(ArithmeticError):
    """A training loss, a gradient or a model's output became NaN or infinite."""
