"""Which task is polled when, and who is waiting."""
