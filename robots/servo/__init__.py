"""Servo buses: protocol without I/O, registers as tables, the bus over pyserial, arms as data."""
