"""Scrub: looking through the images that are here, and mending what has rotted (threats 6.11).

It decides what is looked at and when; looking is the disk's work, mending that of the downloads. Reading order: ``service`` (pace and
repair), and ``presence`` (the names of all images, once a minute).
"""
