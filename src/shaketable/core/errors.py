"""The typed errors of the package: what was expected, what was found, what to do.

Every error that a user can cause is a `ShaketableError`, hence a `ValueError`. It names the argument, says what was
expected and what was found, and ends in the remedy; the same four facts are attributes, so that a program can read
them. Anything else that escapes is a defect of this package.
"""


class ShaketableError(ValueError):
    """An input that cannot be used.

    Args:
        argument: the name of the argument (or file) that is at fault.
        expected: what would have been right.
        found: what was there instead.
        remedy: what to do about it, as an instruction.
    """

    argument: str
    expected: str
    found: str
    remedy: str

    def __init__(self, argument: str, expected: str, found: str, remedy: str) -> None:
        self.argument, self.expected, self.found, self.remedy = argument, expected, found, remedy
        super().__init__(f"{argument}: expected {expected}, found {found}. {remedy}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        return type(self), (self.argument, self.expected, self.found, self.remedy)


class InputError(ShaketableError):
    """An argument of a function: its type, shape, range or value."""


class GradientError(ShaketableError):
    """No example has a usable gradient, so a gradient-based ascent would silently do nothing."""


class ModelError(ShaketableError):
    """A model that breaks the contract, or a file that holds no model that can be read."""


class UnsafeFileError(ShaketableError):
    """A file that would run code, or take absurd memory, when loaded."""


class DataError(ShaketableError):
    """A data set that cannot be read or used."""


class CheckpointError(ShaketableError):
    """A run's checkpoint that is missing, damaged or of another run."""


class StorageError(ShaketableError):
    """A folder that cannot be written: full, read-only, or not a folder."""


class ConfigError(ShaketableError):
    """A configuration with an unknown key or a value that cannot be."""
