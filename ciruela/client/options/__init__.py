"""The command line, and nothing but: everything is checked for form, no file is read and nobody is asked.

Reading order: ``common`` (what all commands take, and how values are read), ``signing`` (what commands take that sign and wait for nodes),
``sync``, ``local`` (``index`` and ``verify``), ``reading`` (``get``, ``ls``, ``status``, ``diff`` and ``doctor``), ``keygen``, ``demo``,
``table`` (every command; dispatch).
"""
