"""Tests of ``ciruela.index``: the formats of images, from bytes to values and back."""
