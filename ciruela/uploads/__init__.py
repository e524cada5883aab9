"""Uploads: whether a signed wish is granted, by a client's request or a peer's word alike.

Reading order: ``verdict`` (the decision tables, pure), ``proof`` (whose signatures they are), ``neighbours`` (what other nodes have there),
``refused`` (signatures that count in one form only), ``quotas`` (how much at a time), ``service`` (keys, verdict, record, start of the
download), ``removal`` (the verdict on a removal, pure), ``removals`` (keys, verdict, tombstone).
"""
