"""Seeds that once found a fault, or came close to one; they are played at every push."""

PINNED = (
    1,  # a disk that is full before the first record: the client has to hear why
    2,  # a node without one of two keys took an older signature over, and did not ask again when it had the key
    166,  # a client that tried again and again on a full disk made the node wait for minutes when there was room
    34,  # twenty nodes, of which some are stopped: nothing may wait for them
)
