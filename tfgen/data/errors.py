"""What can be wrong with a data set. All are `ValueError`s whose text says what was expected, found, and to do."""

from __future__ import annotations


class DataError(ValueError):
    """A data set that cannot be used as it is."""


class UnknownDatasetError(DataError):
    """A name that stands for no data set."""


class RejectedImagesError(DataError):
    """More files of a data set are unusable than the allowed share."""


class UnreadableFileError(DataError):
    """A file that the operating system would not give, after several attempts."""
