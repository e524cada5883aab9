"""The command line, and nothing but: everything is checked for form, no file is read and nobody is asked.

Reading order: ``common`` (what all commands take, and how values are read), ``signing`` (what commands take that sign and wait for
nodes), ``trusting`` (whose signatures are believed), ``excluding`` (what is left out of an index), ``sync``, ``edit``, ``removing``,
``explaining``, ``reading`` (``get``, ``ls``, ``status``, ``diff`` and ``doctor``), ``local`` (``index`` and ``verify``), ``keygen``,
``upload``, ``demo``, ``completion``, ``environ`` (options as variables), ``table`` (every command; dispatch), ``tree`` (all of them as
one parser, for completion and man pages).
"""
