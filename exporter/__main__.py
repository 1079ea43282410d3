"""`python -m spikeexport`."""

from spikeexport.cli.main import main

if __name__ == "__main__":
    main()
