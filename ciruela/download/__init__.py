"""Downloads: from an accepted upload to a visible directory, and giving blocks to others meanwhile.

No files and no sockets here: the disk and the connections are seams. Reading order: ``plan`` (which block from whom next, pure),
``exchange`` (which slice from which peer, pure), ``sources`` (who can give what, and how each behaves), ``suppliers`` (who is asked for
one image), ``fetch_index``, ``fetch_blocks``, ``running`` (what is known of one download), ``siblings`` (images with something in common),
``service`` (the chain of a download, and that of an image that is healed), ``serving`` (answers to GetBlock and GetBlocks, and the
indexes in use).
"""
