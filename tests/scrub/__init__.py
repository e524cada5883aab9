"""The scrub: pace and order, what is suspect, and what follows from damage."""
