"""Discovery of the other nodes: one class for each kind of place that is asked for them, and what they have in common.

Nothing here knows gossip or images; what a source says becomes names, and ``net.peers`` makes addresses of them.

Reading order: ``source`` (what all sources are, and how those behave that are asked again and again), ``files``, ``srv`` (SRV records and
addresses of names), ``fetch`` (one page by HTTP, read with care), ``consul``, ``spec`` (how a source is written in ``ciruela.yaml``, and
what is made of it).
"""
