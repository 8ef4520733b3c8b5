"""Audit of a checkpoint: where its attention is badly conditioned, beside what chance gives, and what to try."""

from spectral_core.audit.result import Audit
from spectral_core.audit.run import audit_checkpoint
from spectral_core.audit.store import AuditError

__all__ = ["Audit", "AuditError", "audit_checkpoint"]
