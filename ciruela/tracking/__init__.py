"""Memory of a node: no I/O, no decisions.

Reading order: ``ledger`` (what is here and what is coming), ``subscriptions`` (who waits, who can give, and who asked for what is on its
way).
"""
