"""The third tab: the audit of a checkpoint that a visitor brings, or of the packaged MiniLM."""

from __future__ import annotations

from typing import Any

import gradio as gr

from spectral_core.demo.audit_panel import audit_file, audit_package
from spectral_core.demo.starts import MINILM
from spectral_core.demo.upload import LIMIT

__all__ = ["make_audit_tab"]

ABOUT = f"""Where is a model's attention badly conditioned, and is that more than chance? Bring one `.safetensors` file
of up to {LIMIT // 10**6} MB: it is looked at in float64 and removed at once. Nothing of it is run, and pickled
checkpoints are refused. For larger ones, and with real inputs, `spectral-core audit FOLDER
--data TEXTS` does the same and more."""


def make_audit_tab() -> None:
    """Draw the tab and connect its events."""
    gr.Markdown(ABOUT)
    with gr.Row():
        upload = gr.File(label="A .safetensors file", file_types=[".safetensors"], type="filepath", elem_id="upload",
                         height=140)
        packaged = gr.Button("Audit the packaged MiniLM (6 layers, 22 million parameters)", elem_id="audit-minilm")
        heads = gr.Number(0, precision=0, minimum=0, maximum=512, label="Heads of every layer", elem_id="audit-heads",
                          info="0: as far as the names say. One file alone often does not say it.", min_width=160)
    report = gr.HTML('<p class="sentence">Nothing audited yet.</p>', elem_id="audit")
    slow: dict[str, Any] = {"concurrency_id": "audit", "concurrency_limit": 2, "api_visibility": "undocumented",
                            "show_progress": "minimal"}
    upload.upload(on_upload, [upload, heads], [report, upload], preprocess=False, api_name="audit_file", **slow)
    packaged.click(on_packaged, None, report, api_name="audit_minilm", **slow)


def on_upload(payload: object, heads: object = 0) -> tuple[str, Any]:
    """Audit a file and remove it, whatever comes of it."""
    path = payload.get("path") if isinstance(payload, dict) else None
    name = payload.get("orig_name") if isinstance(payload, dict) else None
    if not isinstance(path, str):
        return '<p class="notice" role="alert">Expected one .safetensors file, got none.</p>', None
    count = int(heads) if isinstance(heads, (int, float)) and 1 <= heads <= 512 else None
    return audit_file(path, name if isinstance(name, str) else "", count), None


def on_packaged() -> str:
    return audit_package(MINILM)
