"""Conditioned attention and exact attention Jacobians, after arXiv 2603.07162."""

from spectral_core.attention import SpectralConditionedAttention
from spectral_core.bounds import JacobianBound, jacobian_bound, saturation, suggest_lambda
from spectral_core.calibration import Calibration, calibrate
from spectral_core.candidate_scores import Candidate
from spectral_core.checkpoints import plain_state_dict
from spectral_core.conditioning import advance, condition, fold, unfold
from spectral_core.corrections import Correction, FixedCorrection, IdentityCorrection
from spectral_core.head_jacobians import HeadJacobian, attention_jacobians
from spectral_core.initialization import initialize
from spectral_core.jacobian import AttentionJacobian, JacobianCondition, JacobianExtremes
from spectral_core.layouts import Layout
from spectral_core.monitor import SpectralMonitor
from spectral_core.penalty import spectral_penalty
from spectral_core.polar import polar_factor, spectral_clip
from spectral_core.polar_correction import PolarCorrection
from spectral_core.projections import Projection, find_projections
from spectral_core.report import ConditioningReport
from spectral_core.spectrum import Spectrum, condition_number, singular_values, spectrum
from spectral_core.spectrum_target import SpectrumTarget

__version__ = "0.1.0"

__all__ = [
    "AttentionJacobian",
    "Calibration",
    "Candidate",
    "ConditioningReport",
    "Correction",
    "FixedCorrection",
    "HeadJacobian",
    "IdentityCorrection",
    "JacobianBound",
    "JacobianCondition",
    "JacobianExtremes",
    "Layout",
    "PolarCorrection",
    "Projection",
    "SpectralConditionedAttention",
    "SpectralMonitor",
    "Spectrum",
    "SpectrumTarget",
    "advance",
    "attention_jacobians",
    "calibrate",
    "condition",
    "condition_number",
    "find_projections",
    "fold",
    "initialize",
    "jacobian_bound",
    "plain_state_dict",
    "polar_factor",
    "saturation",
    "singular_values",
    "spectral_clip",
    "spectral_penalty",
    "spectrum",
    "suggest_lambda",
    "unfold",
]
