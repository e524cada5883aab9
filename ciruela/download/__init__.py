"""Downloads: from an accepted upload to a visible directory, and giving blocks to others meanwhile.

No files and no sockets here: the disk and the connections are seams. Reading order: ``plan`` (which block from whom next, pure),
``sources`` (who can give what, and how each behaves), ``fetch_index``, ``fetch_blocks``, ``service`` (the chain of one download),
``serving`` (answers to GetBlock, and the indexes in use).
"""
