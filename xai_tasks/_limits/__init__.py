"""When a request may leave, and whether it is retried."""
