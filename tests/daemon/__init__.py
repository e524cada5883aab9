"""Configuration, wiring and requests of a node."""
