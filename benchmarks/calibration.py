"""What `calibrate` chooses for the course's ViT, how long it takes, and whether its choice then trains better.

    python benchmarks/calibration.py [--seeds 5] [--steps 300] [--threads 2] [--fresh] [--time-again]

For each initialisation and seed: `calibrate` on one held-out digit, then training (AdamW 10⁻³, weight decay 0.05, batch
64, 4 000 MNIST digits) of four arms with the same weights and batches: plain, the choice, the best fixed λ within the
limits, and polar with ‖W‖_F kept. The outcome is the training loss over the last 50 steps and the held-out accuracy,
as differences to plain paired by seed, with 95 % intervals (Student's t over seeds). Finished runs are kept in
results/calibration.json; --fresh forgets them, --time-again measures only the seconds once more, for a machine that
was busy. Writes results/calibration.md and results/calibration.png.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import time
import warnings
from pathlib import Path

import torch
from rich.progress import Progress
from scipy import stats

from spectral_core import Calibration, IdentityCorrection, PolarCorrection, calibrate, condition
from spectral_core.data import load_digits
from spectral_core.models import course_vit
from spectral_core.plots import png
from spectral_core.training import fit

RESULTS = Path(__file__).parent.parent / "results"
STORE, PAGE, PICTURE = (RESULTS / f"calibration.{kind}" for kind in ("json", "md", "png"))
INITS = ("xavier", "trunc-normal")
ARMS = ("plain", "chosen", "best fixed λ", "polar, ‖W‖_F kept")
WINDOW = 50


def arms(found: Calibration) -> dict[str, dict]:
    allowed = [c for c in found.table if not c.refused]
    fixed = [c for c in allowed if c.name.startswith("λ = ") and c.name.endswith(" on Q, K and V")]
    polar = dict.fromkeys("qkv", PolarCorrection(preserve="frobenius"))
    return dict(zip(ARMS, ({}, found.choice, fixed[0].corrections, polar), strict=True))


def search(init: str, seed: int) -> tuple[Calibration, float]:
    """The calibration of one model, and its seconds."""
    model, image = course_vit(init, seed), load_digits("mnist").test_x[:1]
    began = time.perf_counter()
    found = calibrate(model, image, progress=False)
    seconds = time.perf_counter() - began
    if (init, seed) == ("xavier", 0):
        PICTURE.write_bytes(png(found.plot()))
    return found, seconds


def run(init: str, seed: int, steps: int) -> dict:
    data, model = load_digits("mnist"), course_vit(init, seed)
    found, seconds = search(init, seed)
    rows = {c.name: c for c in found.table}
    result = {
        "seconds": seconds, "choice": found.table[0].name, "plain": rows["plain"].kappa, "kappa": found.table[0].kappa,
        "saturation": found.table[0].mean_saturation, "ten": rows["λ = 10 on Q, K and V"].refused, "arms": {},
    }  # fmt: skip
    for name, by_role in arms(found).items():
        arm = copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # κ(W) may be worse where κ(J) is better
            if by_role:
                condition(arm, by_role)
        records = list(fit(arm, data, steps=steps, every=WINDOW, seed=seed))
        fix = by_role.get("q")
        label = f"{fix.lam:g}" if name == "best fixed λ" and isinstance(fix, IdentityCorrection) else ""
        result["arms"][name] = {"loss": records[-1].loss, "accuracy": records[-1].accuracy, "lam": label}
    return result


def interval(values: list[float], digits: int = 3) -> str:
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}"


def page(store: dict[str, dict], options: argparse.Namespace) -> str:
    lines = [
        "# What calibrate chooses, and whether that trains better", "",
        f"`python benchmarks/calibration.py --seeds {options.seeds} --steps {options.steps} --threads "
        f"{options.threads}`: torch {torch.__version__}, Python {platform.python_version()}, {options.threads} CPU "
        "threads. The course's ViT (4 layers, 4 heads of 16, 50 tokens), corrections on whole 64 × 64 matrices, one "
        "held-out MNIST digit.", "",
        "| initialisation | seed | seconds | chosen | κ(J) plain | κ(J) chosen | saturation | λ = 10 on Q, K and V |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    for init in INITS:
        for seed in range(options.seeds):
            r = store[f"{init} {seed} {options.steps}"]
            ten = f"refused: {r['ten'].partition(',')[0]}" if r["ten"] else "allowed"
            numbers = f"{r['plain']:.3g} | {r['kappa']:.3g} | {r['saturation']:.2f}"
            lines.append(f"| {init} | {seed} | {r['seconds']:.1f} | {r['choice']} | {numbers} | {ten} |")
    lines += [
        "", f"Training, {options.steps} steps, the same learning rate for every arm; loss over the last {WINDOW} "
        f"steps and held-out accuracy at the end, mean ± 95 % interval over {options.seeds} seeds, differences paired:",
        "", "| initialisation | arm | loss | less plain | accuracy | less plain |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for init in INITS:
        runs = [store[f"{init} {seed} {options.steps}"]["arms"] for seed in range(options.seeds)]
        for name in ARMS:
            cells = []
            for key in ("loss", "accuracy"):
                cells.append(interval([r[name][key] for r in runs]))
                paired = [r[name][key] - r["plain"][key] for r in runs]
                cells.append("–" if name == "plain" else interval(paired))
            lams = sorted({r[name]["lam"] for r in runs} - {""})
            lines.append(f"| {init} | {name}{' (' + ', '.join(lams) + ')' if lams else ''} | {' | '.join(cells)} |")
    lines += [
        "", "Limits: one small model and data set, one learning rate, κ(J) at initialisation on one image. A lower "
        "κ(J) at the start is not in itself a better training run; the table says how far it was one here.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds (default 5)")
    parser.add_argument("--steps", type=int, default=300, help="training steps (default 300)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--time-again", action="store_true", help="measure the seconds of finished runs once more")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store = {} if options.fresh or not STORE.exists() else json.loads(STORE.read_text())
    jobs = [(init, seed) for init in INITS for seed in range(options.seeds)]
    with Progress() as progress:
        for init, seed in progress.track(jobs, description="runs"):
            key = f"{init} {seed} {options.steps}"
            if key not in store:
                store[key] = run(init, seed, options.steps)
            elif options.time_again:
                store[key]["seconds"] = search(init, seed)[1]
            STORE.write_text(json.dumps(store, indent=1) + "\n", encoding="utf-8")
    text = page(store, options)
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
