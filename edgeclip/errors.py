"""Every error that edgeclip raises on purpose.

    EdgeClipError                       exit  what happened
    ├── GateError                          1  a measured value is outside its bound
    │   ├── ParityError                       an artifact disagrees with the fp32 reference
    │   └── NonFiniteError                    NaN or infinity in weights or embeddings
    ├── UsageError                         2  the call itself is wrong
    │   ├── ExportExistsError                 the output is there already, or is not ours to replace
    │   └── ExportLockedError                 another export is writing the same output
    ├── BundleError                        3  the bundle cannot be trusted or understood
    │   ├── BundleNotFoundError
    │   ├── BundleFormatError
    │   ├── BundleVersionError
    │   ├── BundlePathError
    │   └── BundleIntegrityError
    ├── InputError                         4  an input cannot be used
    │   ├── ImageDecodeError
    │   ├── ImageTooLargeError
    │   ├── TextInputError
    │   ├── InputShapeError
    │   ├── PhotoIndexError                   an index of photographs is damaged, or made otherwise
    │   ├── DeviceFileError                   what `edgeclip tune` kept for this device is damaged
    │   ├── DataError                         training or evaluation data is missing or damaged
    │   └── CheckpointError
    │       └── CheckpointUnsafeError
    ├── TargetError                        5  the engine or device is not available
    │   ├── TargetUnavailableError
    │   ├── TargetLoadError
    │   ├── ForkedModelError
    │   └── ModelClosedError
    ├── ResourceError                      6  disk or memory is exhausted
    └── ExportError                       70  a converter failed in a way that we did not foresee

An error's text is one line (what, where, why); `hint` says what to do next.
"""

from __future__ import annotations


class EdgeClipError(Exception):
    """Root of the tree. `str(error)` is one line; `hint` says what to do next; `exit_code` is the CLI's."""

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message} ({self.hint})" if self.hint else message

    @property
    def message(self) -> str:
        """The text without its hint."""
        return str(self.args[0])


class GateError(EdgeClipError):
    exit_code = 1


class ParityError(GateError):
    pass


class NonFiniteError(GateError):
    pass


class UsageError(EdgeClipError):
    exit_code = 2


class ExportExistsError(UsageError):
    pass


class ExportLockedError(UsageError):
    pass


class BundleError(EdgeClipError):
    exit_code = 3


class BundleNotFoundError(BundleError):
    pass


class BundleFormatError(BundleError):
    pass


class BundleVersionError(BundleError):
    pass


class BundlePathError(BundleError):
    pass


class BundleIntegrityError(BundleError):
    pass


class InputError(EdgeClipError):
    exit_code = 4


class ImageDecodeError(InputError):
    pass


class ImageTooLargeError(InputError):
    pass


class TextInputError(InputError):
    pass


class InputShapeError(InputError):
    pass


class PhotoIndexError(InputError):
    pass


class DeviceFileError(InputError):
    pass


class DataError(InputError):
    pass


class CheckpointError(InputError):
    pass


class CheckpointUnsafeError(CheckpointError):
    pass


class TargetError(EdgeClipError):
    exit_code = 5


class TargetUnavailableError(TargetError):
    pass


class TargetLoadError(TargetError):
    pass


class ForkedModelError(TargetError):
    pass


class ModelClosedError(TargetError):
    pass


class ResourceError(EdgeClipError):
    exit_code = 6


class ExportError(EdgeClipError):
    exit_code = 70
