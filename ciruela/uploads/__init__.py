"""Uploads: whether a signed request is granted, by a client's request or a peer's word alike.

Reading order: ``decision`` (the tables for uploads and removals, pure), ``neighbours`` (what other nodes have there), ``rejections``
(signatures that count in one form only), ``service`` (keys, quotas, decision, record, start of the download), ``removals`` (keys, decision,
tombstone).
"""
