"""The network of one process: websockets, datagrams, names. It carries messages and knows nothing of what they are for.

It must not decide anything about images, and it must not trust what it reads: every byte passes ``ciruela.proto`` first.

Reading order: ``session`` (requests and answers, and who deals with them), ``limits`` (of one connection and of all, in size, time and
memory), ``strict`` (what a websocket must not be sent), ``frames`` (whole messages in single frames), ``sendqueue`` (what waits to be
sent), ``bulk`` (connections for blocks alone, with threads), ``connection`` (a websocket around a session, both roles), ``server`` (the
port where websockets and pages arrive), ``outgoing`` (a connection to a node, and the pool of them), ``datagrams``, ``resolve`` (names to
addresses), ``discovery`` (places that know the other nodes), ``peers`` (what all of them say), ``agent`` (keys of an ssh-agent, for the
client), ``agentclient`` (its protocol).
"""
