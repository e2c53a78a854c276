"""Runs Python functions as jobs, and survives production."""

__version__ = "0.1.0"
