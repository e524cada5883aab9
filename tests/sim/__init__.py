"""The cluster simulator (bench S of the threats): whole clusters of real nodes on one fake clock, a bad network and disks that lose power.

Reading order: ``shelf`` (the disk of one host), ``people`` (clients, and who lies), ``universe`` (hosts, network, time), ``moves`` (what
goes wrong), ``invariants`` (what must hold all the same), ``campaign`` (many seeds), ``seeds`` (those that once found something). A
failing seed is looked at again with ``python -m tests.sim SEED``.
"""
