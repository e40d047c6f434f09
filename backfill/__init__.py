"""Moves exports of historic customer interactions into MXO and accounts for every row."""

__version__ = "0.1.0"
