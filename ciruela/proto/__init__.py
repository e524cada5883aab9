"""The websocket messages of ``ciruela.v1`` (protocol section 3), and what ``ciruela.v2`` adds, as values and bytes, without any I/O.

Reading order: ``bounded`` (a CBOR reader that cannot be made to work or allocate more than its input is worth), ``forms`` (how values
are written, read, checked and bounded), ``messages`` (one frozen class per message, with the form of each field), ``table`` (all messages,
what answers what), ``compression`` (compressed parts of an answer), ``codec`` (messages to bytes and back), ``multiplexer`` (request ids
and what is pending on one connection).
"""
