"""What the nodes of a cluster tell each other in datagrams: hints that make work start, never an authority.

No file, no socket: datagrams leave through ``seams.Datagrams``, clock and chance are handed in. What is heard never makes this node
contact an address that is not configured, and never deletes, aborts or accepts anything by itself (threats 6.7).

Reading order: ``packets`` (the facts and their bytes), ``envelope`` (what stands around a body), ``window`` (replays), ``quota`` (bounded
memory), ``roster`` (who is who), ``stances``, ``results`` and ``watches`` (what others said of paths), ``cluster`` (all of that
together), ``rumors`` (what to say next), ``compose`` (a datagram's worth of it), ``targets`` (to whom), ``telling`` (completions until
acknowledged), ``service`` (the beat, the news, the effects). The format is written down in ``docs/reference/gossip.rst``.
"""
