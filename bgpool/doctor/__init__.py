"""Whether everything is in place for a switchover, asked before it, one question at a time. Changes nothing."""

from __future__ import annotations

from bgpool.doctor.case import Case
from bgpool.doctor.examination import examine
from bgpool.doctor.findings import Finding, Result, exit_code

__all__ = ["Case", "Finding", "Result", "examine", "exit_code"]
