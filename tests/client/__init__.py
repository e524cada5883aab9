"""The commands of the user, over memory links and with fake clocks."""
