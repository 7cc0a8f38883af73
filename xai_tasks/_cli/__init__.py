"""The command line: over public names only, and imported by nobody but `__main__`."""
