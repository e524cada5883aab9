"""The status pages: read-only JSON over HTTP (protocol section 8).

One module: ``pages`` (what a page can ask, as a protocol, and the routes). No page touches a live object: each view is a copy made for one
request.
"""
