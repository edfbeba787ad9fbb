"""Every error that spanqa raises on purpose.

    SpanQAError
    ├── InputError(ValueError)                a text, a parameter or a combination of them that cannot be used
    │   ├── QuestionTooLongError              the question leaves no room for the passage
    │   └── DatasetError                      a file of questions or predictions that does not hold what it should
    ├── CheckpointError(ValueError)           a model folder that is missing, incomplete, damaged or not understood
    │   └── UnsupportedModelError             a sound model that this backend (or spanqa) cannot run
    └── BackendError(RuntimeError)            a backend that cannot do what was asked
        └── BackendNotInstalledError(ImportError)

Each message says what happened, with which value, what was expected, and what to do.
"""


class SpanQAError(Exception):
    """The root: catch this to catch all of them."""


class InputError(SpanQAError, ValueError):
    """A text, a parameter or a combination of them that cannot be used."""


class QuestionTooLongError(InputError):
    """The question leaves no room for the passage."""


class DatasetError(InputError):
    """A file of questions or predictions that does not hold what it should."""


class CheckpointError(SpanQAError, ValueError):
    """A model folder that is missing, incomplete, damaged or not understood."""


class UnsupportedModelError(CheckpointError):
    """A sound model that this backend, or spanqa as a whole, cannot run."""


class BackendError(SpanQAError, RuntimeError):
    """A backend that cannot do what was asked of it."""


class BackendNotInstalledError(BackendError, ImportError):
    """A backend whose packages are not installed."""
