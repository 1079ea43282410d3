"""The command line: one small file per command, listed in `main.COMMANDS`."""
