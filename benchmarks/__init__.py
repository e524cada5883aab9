"""Side by side with what a user would pick instead, and with the reference. See README.rst; nothing here is installed."""
