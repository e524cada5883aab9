"""Tests of what needs sockets and processes."""
