"""Writing what a server loads: one file per layout, listed in `deploy`."""
