"""How near an upload comes to what its links allow: ``model`` has the policy alone, ``program`` whole nodes."""
