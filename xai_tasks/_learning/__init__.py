"""How long tasks take, learned from those that ended: where to place polls."""
