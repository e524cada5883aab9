"""What the nodes of a cluster tell each other, in datagrams and over connections: hints that make work start, never an authority.

No file, no socket: datagrams leave through ``interfaces.Datagrams``, requests through ``interfaces.Connector``; clock and chance are handed in. What
heard never makes this node contact an address that is not configured, and by itself never deletes, aborts or accepts anything (threats
6.7).

Reading order: ``packets`` (the facts and their bytes), ``envelope`` (what stands around a body), ``window`` (replays), ``quota`` (bounded
memory), ``roster`` (who is who), ``known`` (who was met where, over restarts), ``sharing`` (one machine id on several servers), ``servers``
(the rows of every count), ``strangers`` (who speaks and is not configured), ``stances``, ``results`` and ``watches`` (what others said of
paths), ``cluster`` (all of that together), ``rumors`` (what to say next), ``compose`` (a datagram's worth of it), ``targets`` (to whom),
``telling`` (completions until acknowledged), ``pushpull`` (when to exchange over a connection), ``confirm`` (proof of what datagrams say),
``service`` (the beat, the news, the effects). The format is written down in ``docs/reference/gossip.rst``.
"""
