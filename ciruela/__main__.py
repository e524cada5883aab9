"""``python -m ciruela``: as ``ciruela``."""

from ciruela.client.start import ciruela

if __name__ == "__main__":
    ciruela()
