"""The commands of a user: ``ciruela sync`` (also ``ciruela-sync``), ``ciruela index``, ``ciruela verify`` and ``ciruela demo``.

What must not happen here: a decision of a node, or a read of anything but the user's own directories, keys and options. Reading order:
``options/`` (the command line), ``identities`` (private keys), ``orders`` (scan and sign), ``source`` (serves
the local directories), ``book`` (who has an image: pure verdict), ``contacts`` (which addresses to try), ``shares`` (which node takes
which part), ``sync`` (connections of one cluster and the run of all), ``hashes`` (which hash they understand), ``text`` (what may be
printed), ``progress`` (the display), ``live`` (the same on a terminal), ``commands`` (sync and index as stories), ``asking`` (what is at
a path), ``removing``, ``rollback``, ``explain``, ``verify``, ``nodes`` and ``demo``, ``main`` (the process and exit
codes), ``start`` (loads it).
"""
