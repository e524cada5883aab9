"""Every decoder against inputs that were bent on purpose (threats 5.2).

Reading order: ``mutate`` (bends an input), ``wire``, ``texts``, ``records``, ``frames`` (a second, plain reading of websocket frames),
``connections`` and ``talks`` (samples of each format, and what has to hold for its decoder), ``targets`` (the list of them), ``campaign``
(very many inputs; findings are kept in ``findings/``), ``bombs`` (under a limit of memory).
"""
