"""Tests of the network, over connections in memory."""
