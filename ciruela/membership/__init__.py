"""Gossip of the nodes of a cluster, in datagrams and over connections: hints that make work start, never an authority.

No file, no socket: datagrams leave through ``interfaces.Datagrams``, requests through ``interfaces.Connector``; clock and chance are handed
in. What is heard never makes this node contact an address that is not configured, and by itself never deletes, aborts or accepts anything
(threats 6.7).

Reading order: ``packets`` (the facts, their bytes, and the envelope around a body), ``members`` (who is who, over restarts; replays),
``servers`` (the rows of every count), ``softstate`` (what others said of paths, within a quota), ``cluster`` (all of that together),
``broadcast`` (what to say next, a datagram's worth of it), ``notify`` (to whom, and what is said again), ``pushpull`` (when to
exchange over a connection), ``confirm`` (proof of what datagrams say), ``service`` (the rounds, the news, the events). The format is
written down in ``docs/reference/gossip.rst``.
"""
