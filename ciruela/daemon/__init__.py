"""The daemon: where work and world meet. ``twistd ciruela`` begins in ``tap``.

Reading order: ``tap`` (options, ``makeService``), ``config`` with ``yamltext`` and ``modes`` (the config directory, checked), ``identity``
(machine id and host name), ``authority`` (the keys that may upload), ``service`` (files, sockets and the reactor), ``node`` (the work rooms
wired to each other), ``acquaintance`` (when the peers are known), ``requests`` (what a
connection is answered), ``status`` (what the pages show).
"""
