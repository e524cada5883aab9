"""Tests of :mod:`ciruela.swarm`: who gives what to whom."""
