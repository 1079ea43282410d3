"""The passes that turn mobius's decoder into the portable file, one per file; `portable.py` puts them in order."""
