"""What a node remembers: no I/O, no decisions.

Reading order: ``ledger`` (what is here and what is coming), ``watches`` (who waits and who can give), ``wishes`` (who
asked for what is on its way).
"""
