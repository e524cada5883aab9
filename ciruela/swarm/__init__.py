"""Scheduler of pieces: which of them are given to whom, among the nodes that fetch an image and the client that has it. Pure.

``exchange`` decides; ``neighbors`` chooses whom it exchanges pieces with.
"""
