"""`spikeexport doctor`."""

from __future__ import annotations

from spikeexport.cli.answer import Answer


def run() -> Answer:
    """Say what this machine can build and run, and what is missing for the rest."""
    from spikeexport.cli.machine_tables import doctor_table
    from spikeexport.doctor import doctor

    data = doctor()
    return Answer(data, doctor_table(data))
