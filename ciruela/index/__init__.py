"""Indexes: the text format DIRSIGNATURE.v1 that lists a tree with block hashes (protocol section 1).

Pure functions of bytes; no files, no clock. Reading order: ``digest`` (hash kinds), ``tree`` (the values, the map of their blocks, and
which of them a directory takes), ``names`` (escapes, safe names, their order and limits), ``parse`` (strict, verified), ``emit`` (writing,
and putting in one file), ``merge`` (same files of two indexes).
"""
