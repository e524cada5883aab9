"""Downloads: from an accepted upload to a visible directory, and giving blocks to others meanwhile.

No files and no sockets here: the disk and the connections are ports. Reading order: ``plan`` (which block from whom next, pure),
``sources`` (who can give what, and how each behaves), ``availability`` (telling and hearing at once who has what), ``relaycache`` (the
blocks of an answer, kept for others), ``exchange`` (pieces that are offered: what is said and heard), ``fetch_index``,
``fetch_blocks`` (with the assignment of pieces), ``peers`` (who is asked), ``machine`` (the steps of a download and of a repair, and what
may follow each), ``steps`` (the work of a download), ``repair`` (the work of a repair), ``service`` (all downloads of a node), ``serving``
(answers to GetBlock and GetBlocks, upload slots, and the indexes in use).
"""
