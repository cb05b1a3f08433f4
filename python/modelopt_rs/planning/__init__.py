"""Which tensor gets what, and why: options, globs, the names of families."""
