"""The version of bgpool. It is defined only here."""

__version__ = "0.1.0"
