"""Whole clusters in memory, under one fake clock and a seeded random."""
