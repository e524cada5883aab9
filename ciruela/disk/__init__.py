"""Files: states, indexes and images on real file systems, so that nothing is ever lost, mixed or half shown.

Nothing here decides what is to be done, and nothing outside this folder touches a file of an image. Reading order: ``syscalls``,
``openfile`` (a file that is open), ``safedir`` (single names below open directories), ``lane`` (turns in threads), ``handles`` (how many
are kept open), ``removal``, ``litter`` (what could not be removed), ``tree``
(open directories by path), ``layout`` (where things are), ``bases`` (is a base still the one that it was), ``seal`` (the checksum of a
record), ``states`` (state files and the commit journal), ``trust`` (records without a checksum), ``notes`` (of single images), ``indexes``,
``verify``, ``setaside`` (what stood there without a record), ``commit``, ``kept`` (of what was replaced), ``burials``
(tombstones), ``keeplist``, ``protect`` (links),
``deletion``, ``collection`` (of indexes), ``recovery``,
``content`` (what of an image is here), ``reuse`` (what other images have of it), ``staging``, ``reader`` (serving blocks), ``examine``
(what is damaged), ``faults``, ``store`` (all of it, as ``interfaces.Disk``), ``lock``, ``version`` (of the
db directory), ``peercache`` (who the other nodes were); then, for the client, ``known`` and ``hashcache``
(unchanged files are not read again), ``many`` (the calls of ``safedir``, for very many small files), ``excludes`` (what is left out),
``unkept`` (what of a file no image has), ``walk``, ``scan``, ``localtree``, and ``landing`` (a user's copy of an image); for every process
``streams`` (stdin, stdout and stderr).
"""
