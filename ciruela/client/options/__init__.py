"""The command line, and nothing but: everything is checked for form, no file is read and nobody is asked.

Reading order: ``common`` (what all commands take, how values are read, patterns of ``--exclude``), ``signing`` (commands that sign and wait
for nodes; whose signatures are believed), ``sync`` (also ``upload``), ``edit``, ``removing``, ``reading`` (``get``, ``ls``, ``status``,
``diff``, ``doctor``, ``explain-cleanup``), ``local`` (``index``, ``verify``, ``keygen``, ``demo``, ``completion``), ``environ`` (options as
variables), ``table`` (every command; dispatch; all as one parser).
"""
