"""The values that all packages share; standard library only.

Nothing here does I/O, reads a clock or knows another package of ciruela. Reading order: ``values`` (the decorator of their classes),
``ids`` (image ids, block hashes, machine ids, servers), ``vpath`` (virtual paths), ``versions`` (what is at a path, signed by whom;
tombstones), ``upload`` (a signed request, the words that refuse it), ``hooks`` (what is run when an image comes), ``config`` (how one
directory is configured, how much a daemon takes on), ``bitfield`` (how far a download is), ``units`` (durations, and text from elsewhere
made harmless), ``errors``.
"""
