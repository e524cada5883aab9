"""The commands of a user: ``ciruela sync`` (also ``ciruela-sync``) and all others.

``get``, ``ls``, ``status``, ``diff``, ``doctor`` and ``explain-cleanup`` read a cluster and change nothing there.

What must not happen here: a decision of a node, or a read of anything but the user's own directories, keys and options. Reading order:
``options/`` (the command line), ``identities`` (private keys), ``orders`` (scan and sign), ``ignore`` (patterns of what is left out),
``pace`` (``--limit-rate``), ``source`` (serves the local directories), ``require`` (what ``--require`` asks for), ``servers`` (which
servers there are, one row each), ``book`` (who has an image: pure verdict), ``hooks`` (what was run there), ``contacts`` (which addresses
to try), ``probing`` (short connections to those that nobody hears), ``shares`` (which node takes which part), ``listener`` (what a run
tells), ``sync`` (connections of one cluster), ``hashes`` (which hash they understand), ``trust`` (what a signature proves), ``text`` (what
may be printed), ``progress`` (the display), ``live`` (the same on a terminal), ``report`` (the same for programs), ``clusters`` (the run of
all, before the eyes of the user), ``surroundings`` (what a command gets from the process), ``scanning`` (a directory is indexed),
``entrance`` (connections to the entry points, before anything is sent), ``check`` (asks what servers would answer), ``forecast`` (what
follows from that: pure verdict), ``preflight`` (what a cluster gets, and whether it gets anything), ``commands`` (sync and index as
stories), ``dryrun``, ``verify``, ``completion`` (of shells), ``nodes`` and ``demo``; ``fetch`` (what a cluster has), ``localfile``,
``relay`` (serves an image of which one file is here), ``editor``, ``edit``, ``upload``; ``asking`` (what nodes tell of a path),
``removing``, ``rollback``, ``explain``; for what reads: ``ends`` (results and exit codes), ``pages`` (one page of a node), ``shapes`` (what
a page says), ``survey`` (who is in a cluster), ``ls``, ``status``, ``mykeys``, ``doctor``, ``origin`` (the index at a path), ``get``,
``diff``; ``keygen``; ``main`` (the process and exit codes), ``start`` (loads it).
"""
