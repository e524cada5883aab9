"""Tests of messages as values and bytes."""
