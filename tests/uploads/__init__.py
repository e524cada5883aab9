"""The verdicts and the uploads service."""
