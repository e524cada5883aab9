"""Files: states, indexes and images on real file systems, so that nothing is ever lost, mixed or half shown.

Nothing here decides what is to be done, and nothing outside this package touches a file of an image.

Reading order: ``syscalls``, ``openfile`` (a file that is open, how many are), ``safedir`` (single names below open directories),
``executor`` (turns in threads), ``removal``, ``tree`` (open directories by path), ``layout`` (where things are), ``bases`` (is a base still
the one that it was), ``states`` (state files, their checksum, the commit journal), ``trust`` (records without a checksum, protected links),
``sidecar`` (metadata of single images), ``verify``, ``hashrecord`` (what is in files, by inode), ``finished`` (files that we wrote and
nobody touched), ``commit``, ``retained`` (versions that were replaced), ``tombstones``, ``keeplist``, ``deletion``, ``collection`` (index
files, and of which nobody needs them), ``recovery``, ``reuse`` (what of an image is here, and what other images have of it), ``staging``,
``reader`` (serving blocks), ``examine`` (what is damaged), ``store`` (all of it, as ``interfaces.Disk``), ``version`` (of the db directory,
and its lock), ``peercache`` (who the other nodes were); then, for the client, ``hashcache`` (unchanged files are not read again), ``bulk``
(the calls of ``safedir``, for very many small files), ``excludes``, ``walk``, ``scan``, ``localtree``, and ``checkout`` (a user's copy of
an image); for every process ``streams`` (stdin, stdout and stderr).
"""
