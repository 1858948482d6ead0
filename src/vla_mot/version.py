"""The version: one place, read by the build and by `vla_mot.__version__`."""

__version__ = "0.1.0"
