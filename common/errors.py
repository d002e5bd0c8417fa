"""Errors that a user can correct."""


class UserError(ValueError):
    """A value that the user typed, declared or stored is wrong; the message says what to do about it."""
