"""The daemon: where services and adapters meet. ``twistd ciruela`` begins in ``tap``.

Reading order: ``tap`` (options, ``makeService``), ``plan`` (all that it is told, checked; its own file, machine id and host name),
``config`` (the config directory and its hooks) with ``rules`` (how settings are read), ``authority`` (the keys that may upload, and who
signed), ``service`` (files, sockets, the reactor and its watchdog), ``processes`` (how hooks are run or called), ``reload`` and
``keywatch`` (changes of the configuration while it runs), ``node`` (the services wired to each other), ``acquaintance`` (the wait for the
other nodes), ``clients`` (who waits for what, and is told), ``requests`` (answers on a connection) with ``changes`` (uploads, removals),
``listings`` (base dirs, indexes) and ``pathstate`` (one path), ``status`` (what the pages show), ``api`` (the pages below ``/api/v1/``),
``serve`` (all of it under the name of the reference's daemon).
"""
