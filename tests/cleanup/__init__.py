"""What may be deleted, and when nothing is."""
