"""Tests of ``ciruela.disk``: real files in temporary directories."""
