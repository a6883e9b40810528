"""The filed report: made, and checked."""

from masksim.dossier.build import make_report
from masksim.dossier.check import verify_report

__all__ = ["make_report", "verify_report"]
