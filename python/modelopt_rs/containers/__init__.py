"""Bytes on disk: what kinds of model files there are, how each is read, and written so that nothing is lost."""
