"""Errors that a user can mend."""


class UserError(ValueError):
    """Something the user typed, declared or stored is wrong; the message says what to do about it."""
