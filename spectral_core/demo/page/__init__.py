"""The demo's page in Gradio, which the extra `app` brings: three tabs beside one column of controls."""

from spectral_core.demo.page.build import build, launch

__all__ = ["build", "launch"]
