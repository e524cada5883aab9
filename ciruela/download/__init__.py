"""Downloads: from an accepted upload to a visible directory, and giving blocks to others meanwhile.

No files and no sockets here: the disk and the connections are seams. Reading order: ``plan`` (which block from whom next, pure),
``exchange`` (which piece from which peer, pure), ``packing`` (whether to ask for compressed answers, pure), ``sources`` (who can give
what, and how each behaves), ``turns`` (whose turn it is to give a piece), ``lookout`` (hearing at once what others have), ``awaited``
(telling them), ``answers`` (the blocks in an answer), ``passing`` (what came, for others), ``suppliers`` (who is asked for one image),
``fetch_index``, ``fetch_blocks``, ``running`` (what is known of one download), ``siblings`` (images with something in common),
``service`` (the chain of a download, and that of an image that is healed), ``serving`` (answers to GetBlock and GetBlocks, and the
indexes in use), ``slots`` (who may ask for blocks now).
"""
