"""What looks on: the doctor before training, the monitor during it."""

from trlearner.diagnostics.doctor.finding import Diagnosis, Finding

__all__ = [
    "Diagnosis",
    "Finding",
]
