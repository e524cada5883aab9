"""The daemon: where work and world meet. ``twistd ciruela`` begins in ``tap``.

Reading order: ``tap`` (options, ``makeService``), ``plan`` (all that it is told, checked), ``config`` (the config directory) and
``settings`` (the daemon's own file) with ``rules``, ``hookrules``, ``yamltext`` and ``modes``, ``identity`` (machine id and host name),
``authority`` (the keys that may upload), ``service`` (files, sockets and the reactor) with ``descriptors`` (how many of them there may
be) and ``watchdog`` (whether the reactor is stuck), ``processes`` and ``webhooks`` (how hooks are run), ``live`` (the directory configs
that count now), ``hangup``, ``reload`` and ``keywatch`` (changes of the configuration while it runs), ``node`` (the services wired to
each other), ``acquaintance`` (when the peers are known), ``around`` (what cleanup sees of the node), ``requests`` (what a connection is
answered), ``pathstate`` (what it says of one path), ``listings`` (what it says of a base dir),
``status`` (what the pages show), ``api`` (the pages below ``/api/v1/``) with ``signers`` (who signed what), ``refusals`` (why an
image did not come), ``retention`` (why an image stays), ``stamps``, ``serve`` (all of it under the name of the
reference's daemon).
"""
