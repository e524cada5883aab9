"""Tests of ``ciruela.net.discovery``."""
