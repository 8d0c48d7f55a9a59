"""The doctor: checks of all prerequisites of a switchover, made before it. It changes nothing."""

from __future__ import annotations

from bgpool.doctor.case import Case
from bgpool.doctor.examination import examine
from bgpool.doctor.findings import Finding, Result, exit_code

__all__ = ["Case", "Finding", "Result", "examine", "exit_code"]
