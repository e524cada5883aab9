"""The network of one process: websockets, datagrams, names. It carries messages and knows nothing of what they are for.

It must not decide anything about images, and it must not trust what it reads: every byte passes ``ciruela.proto`` first.

Reading order: ``talk`` (a dialogue and who deals with it), ``limits`` (of one connection, in size and time), ``budgets`` (what all of
them share), ``strict`` (what a websocket must not be sent), ``frames`` (whole messages in single frames), ``outbox`` (what waits to be
sent), ``link`` (a websocket around a talk, both roles), ``heads`` (the head of a request), ``server`` (the port where websockets and
pages arrive), ``outgoing`` (a connection to a node, and the pool of them), ``datagrams``, ``resolve`` (names to addresses),
``discovery`` (places that know the other nodes), ``peers`` (what all of them say), ``agent`` (keys of an ssh-agent, for the client),
``memory`` (what the C library keeps for the next message).
"""
