"""Every error and warning that spanqa raises on purpose.

    SpanQAError
    ├── InputError(ValueError)                a text, a parameter or a combination of them that cannot be used
    │   ├── QuestionTooLongError              the question leaves no room for the passage
    │   └── DatasetError                      a file of questions or predictions with the wrong content
    ├── CheckpointError(ValueError)           a model folder that is missing, incomplete, damaged or not understood
    │   ├── UnsupportedModelError             a sound model that this backend (or spanqa) cannot run
    │   └── SignatureError                    a model whose signature is missing, wrong, or of other files
    ├── NotInstalledError(ImportError)        a package that is needed is not installed
    ├── BackendError(RuntimeError)            a backend cannot do what was asked
    ├── EngineError(RuntimeError)             windows that were not read
    │   ├── QueueFullError                    the queue is full, and the caller does not wait
    │   ├── DeadlineError(TimeoutError)       the deadline passed first
    │   └── ClosedError                       the reader or its engine was closed
    ├── ServerError(RuntimeError)             a server refused what `spanqa.Client` asked, or cannot be reached
    ├── TrainingError(RuntimeError)           training cannot go on
    │   └── InterruptedTrainingError          a signal stopped it; a checkpoint was written
    ├── AccuracyLostError(ValueError)         a quantized model lost more F1 than allowed
    └── DeploymentError(ValueError)           a deployment folder that its platform would not take

    SpanQAWarning(UserWarning)                something the user should know and may ignore

A request that was cancelled raises `concurrent.futures.CancelledError`, as every future does.
Each message says what happened, with which value, what was expected, and what to do.
"""


class SpanQAError(Exception):
    """The root: catch this to catch all of them."""


class InputError(SpanQAError, ValueError):
    """A text, a parameter or a combination of them that cannot be used."""


class QuestionTooLongError(InputError):
    """The question leaves no room for the passage."""


class DatasetError(InputError):
    """A file of questions or predictions with the wrong content."""


class CheckpointError(SpanQAError, ValueError):
    """A model folder that is missing, incomplete, damaged or not understood."""


class UnsupportedModelError(CheckpointError):
    """A sound model that this backend, or spanqa as a whole, cannot run."""


class SignatureError(CheckpointError):
    """A model that should be signed, and is not, or was changed since, or was signed by somebody else."""


class NotInstalledError(SpanQAError, ImportError):
    """A package that is needed is not installed; the message says how to install it."""


class BackendError(SpanQAError, RuntimeError):
    """A backend cannot do what was asked of it."""


class EngineError(SpanQAError, RuntimeError):
    """Windows that were submitted and not read."""


class QueueFullError(EngineError):
    """The engine's queue is full, and the caller does not want to wait."""


class DeadlineError(EngineError, TimeoutError):
    """The deadline passed before the windows were read."""


class ClosedError(EngineError):
    """The reader, or its engine, was closed."""


class ServerError(SpanQAError, RuntimeError):
    """A server refused a request, or cannot be reached.

    `status` is the HTTP status, None where there was no response; `error_type` is the server's name for the problem, or "";
    `retry_after` are the seconds after which it wants to be asked again, if it said so.
    """

    def __init__(
        self, message: str, status: int | None = None, error_type: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.error_type, self.retry_after = status, error_type, retry_after


class TrainingError(SpanQAError, RuntimeError):
    """Training cannot go on: the loss is not a number, or a signal stopped it."""


class InterruptedTrainingError(TrainingError):
    """A signal stopped the training; a checkpoint was written, and --resume continues from it."""


class AccuracyLostError(SpanQAError, ValueError):
    """A quantized model lost more F1 than allowed; nothing was written."""


class DeploymentError(SpanQAError, ValueError):
    """A deployment folder that its platform would not take, or that was changed where it must not be."""


class SpanQAWarning(UserWarning):
    """Something the user should know and may ignore."""
