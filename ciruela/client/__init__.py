"""The commands of a user: ``ciruela sync`` (also ``ciruela-sync``), ``ciruela index``, ``ciruela verify`` and ``ciruela demo``.

What must not happen here: a decision of a node, or a read of anything but the user's own directories, keys and options. Reading order:
``options/`` (the command line), ``identities`` (private keys), ``orders`` (scan and sign), ``ignore`` (patterns of what is left out),
``pace`` (``--limit-rate``), ``source`` (serves the local directories), ``require`` (what ``--require`` asks for), ``book`` (who has an
image: pure verdict), ``contacts`` (which addresses to try), ``shares`` (which node takes which part), ``listener`` (what a run tells),
``sync`` (connections of one cluster), ``clusters`` (the run of all), ``hashes`` (which hash they understand), ``text`` (what may be
printed), ``progress`` (the display), ``live`` (the same on a terminal), ``report`` (the same for programs), ``commands`` (sync and index
as stories), ``forecast`` (what a dry run found: pure verdict), ``check`` (the dry run), ``verify``, ``completion`` (of shells), ``nodes``
and ``demo``, ``main`` (the process and exit codes), ``start`` (loads it).
"""
