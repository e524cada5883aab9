"""The words of the program as plain values; standard library only.

Nothing here does I/O, reads a clock or knows another folder of ciruela. Reading order:
``ids`` (image ids, block hashes, machine ids), ``vpath`` (virtual paths), ``state`` (what is at a path, signed by whom),
``servers`` (who may take a directory),
``order`` (a signed wish and the words that refuse it), ``hooks`` (what is run when an image comes),
``dirconfig`` (how one directory is configured),
``tuning`` (how much a daemon takes on), ``mask`` (how far a download is), ``units`` (durations),
``printable`` (text from elsewhere, made harmless), ``errors``.
"""
