"""Operators: whoever or whatever produces the actions of a demonstration."""
