"""Indexes: the text format DIRSIGNATURE.v1 that lists a tree with block hashes (protocol section 1).

Pure functions of bytes; no files, no clock. Reading order: ``digest`` (hash kinds), ``tree`` (the values), ``names`` (escapes and
safe names), ``order`` (of directories; limits), ``parse`` (strict, verified), ``emit``, ``merge`` (same files and blocks of two indexes),
``change`` (one file put into an index), ``policy`` (which images a directory takes).
"""
