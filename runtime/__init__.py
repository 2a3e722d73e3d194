"""The policy runtime: what a robot client needs, importable without torch."""
