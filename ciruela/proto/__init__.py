"""The websocket messages of ``ciruela.v1`` (protocol section 3), and what ``ciruela.v2`` adds, as values and bytes, without any I/O.

Reading order: ``bounded`` (a CBOR reader that cannot be made to work or allocate more than its input is worth), ``messages`` (one frozen
class per message), ``fields`` (the values inside them, checked), ``packing`` (compressed parts of an answer), ``blocks`` (answers with one
block, without detours), ``reading`` (what stands in each message), ``codec`` (messages to bytes and back), ``dialogue`` (request ids and
what is pending on one connection).
"""
