"""The status pages: read-only JSON over HTTP (protocol section 8).

Reading order: ``status`` (what a page can ask, as a protocol), ``pages`` (the routes). No page touches a live object: each view is a
copy made for one request.
"""
