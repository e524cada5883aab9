"""Downloads: from an accepted upload to a visible directory, and giving blocks to others meanwhile.

No files and no sockets here: the disk and the connections are ports. Reading order: ``plan`` (which block from whom next, pure),
``sources`` (who can give what, and how each behaves), ``availability`` (telling and hearing at once who has what), ``relaycache`` (the
blocks of an answer, kept for others), ``fetch_index``, ``fetch_blocks`` (with the assignment of pieces), ``running`` (what is known of one
download), ``service`` (the chain of a download, and that of a repair; who is asked), ``serving`` (answers to GetBlock and GetBlocks,
upload slots, and the indexes in use).
"""
