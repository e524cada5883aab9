"""Reconciliation: making a base dir agree with a peer's (protocol section 5.12).

A node that was down, or has just joined, finds by the hash of a base dir that a peer has something else, asks for its list, and takes over
what is newer. Reading order: ``diff`` (which entries are wanted, pure), ``service`` (asking, throttling, ordering).
"""
