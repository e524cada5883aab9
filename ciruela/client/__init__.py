"""The commands of a user: ``ciruela sync`` (also ``ciruela-sync``) and all others.

``get``, ``ls``, ``status``, ``diff``, ``doctor`` and ``explain-cleanup`` read a cluster and change nothing there. Nothing here makes a
decision of a node, or reads anything but the user's own directories, keys and options.

Reading order. The process: ``start``, ``warm`` and ``warmserver`` (uploads in a fork of a process that waits for them), ``main`` (exit
codes), ``context`` (what a command gets from the process), ``options/`` (the command line), ``text`` and ``errors`` (results of commands).
An upload: ``identities`` (private keys), ``scanning``, ``orders`` (scan and sign), ``source`` (serves the local directories), ``require``
(``--require``), ``servers`` (one row for each server), ``tracker`` (who has an image: pure verdict), ``listener`` (events of a run, hooks
among them), ``contacts`` (addresses to try, short connections), ``entrance`` (connections before anything is sent), ``crawl`` (visits each
server, or searches for some), ``check`` (asks for answers, the forecast), ``preflight`` (what a cluster gets, dry runs), ``uploadrun`` (one
upload, and its request at each node: states), ``offers`` (of pieces), ``sync`` (connections of one cluster), ``clusters`` (the run of all),
``progress``, ``live`` and ``report`` (for people, terminals, programs), ``commands`` (sync, index and upload). Reading and changing:
``schema`` (shapes of pages), ``survey`` (the nodes of a cluster and their pages), ``cluster`` (:class:`ClusterClient`, the public way to
ask), ``pathview`` (what nodes say of a path), ``trust`` (what a signature proves), ``origin`` (the index at a path), ``fetch`` (blocks of a
cluster's image), ``get``, ``ls``, ``status``, ``diff``, ``doctor``, ``explain``, ``editor``, ``edit``, ``removing``, ``rollback``,
``verify``, ``keygen``, ``completion``, ``demo``.
"""
