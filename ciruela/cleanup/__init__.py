"""Cleanup: removing old images, and what nobody needs after them (protocol sections 5.13 and 5.14, threats 6.10).

Nothing is deleted unless everything that the decision rests on is known to be right; who is in doubt keeps. Reading order: ``rules`` (which
images a directory keeps, pure), ``health`` (whether deleting is safe now, and when an image goes, pure), ``service`` (when, one directory
at a time).
"""
