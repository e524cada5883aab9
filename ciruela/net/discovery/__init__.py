"""Who the other nodes are: places that are asked for it, one class each, and what they have in common.

Nothing here knows gossip or images; what a source says becomes names, and ``net.peers`` makes addresses of them.

Reading order: ``spec`` (how a source is written in ``ciruela.yaml``), ``source`` (what all sources are, and how those behave that are
asked again and again), ``lists`` (texts and JSON from others, read with care), ``files``, ``dns`` and ``srv``, ``fetch`` (one page by
HTTP), ``http``, ``consul``, ``build`` (from what is written to sources).
"""
