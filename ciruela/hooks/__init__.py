"""Hooks: what the operator of a node has run when an image comes to a directory, before it is visible and after.

No process and no connection here: those are ports. What is run stands in the local configuration only, and what was uploaded is never run
or read by this package: a hook is told its path. One module: ``service`` (what a hook is told, when it runs and is tried again, and what
became of it).
"""
