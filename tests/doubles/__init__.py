"""Stand-ins for the world: networks, files and peers in memory."""
