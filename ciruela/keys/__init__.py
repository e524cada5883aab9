"""Keys and signatures: who may upload (protocol sections 3.4, 5.2 and 7.2, appendix C).

Pure functions of text and bytes; no files, no agent, no clock. Only ed25519. Reading order: ``signed`` (the bytes that are signed),
``public`` (public and private keys of OpenSSH, checking a signature), ``authorized`` (key files of a server).
"""
