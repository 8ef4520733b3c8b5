"""κ of the attention Jacobian, ours beside what else there is: time, peak memory, agreement, growth.

    python benchmarks/jacobian.py [--threads 2] [--seed 0] [--limit 600] [--gigabytes 20] [--fresh]

One head, float64: x Gaussian, weights Gaussian of standard deviation 1/√D, d_k = d_v = d. The ways:

* jacrev + svdvals: `torch.func.jacrev` of plainly written attention, then `torch.linalg.svdvals`;
* jacrev + eigvalsh: the same J, then J Jᵀ and `torch.linalg.eigvalsh`;
* curvlinops + svds: its Jacobian operator and SciPy's `svds` at both ends (needs `pip install -e '.[bench]'`);
* gram, cholesky, svd: `AttentionJacobian(...).condition_number(method=...)`, construction included.

Every run is a process of its own, under a memory limit and a time limit: "does not fit" is what broke either, or
would, having broken it at a smaller size. Peak memory is the resident peak above that of the same process after
its imports, its input and a tiny warm-up run. Finished runs are kept in results/jacobian.json, so that a broken
benchmark goes on where it stopped; --fresh forgets them. Writes results/jacobian.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).parent.parent
STORE, PAGE = ROOT / "results" / "jacobian.json", ROOT / "results" / "jacobian.md"
SIZES = ((32, 128, 32), (64, 128, 32), (64, 256, 64), (128, 256, 64), (197, 768, 64))
PEERS = ("jacrev + svdvals", "jacrev + eigvalsh", "curvlinops + svds")
OURS = ("cholesky", "gram", "svd")
GROWTH = {
    "n": [(n, 128, 32) for n in (48, 64, 96, 128, 192)],
    "D": [(32, dim, 32) for dim in (64, 128, 256, 512, 1024)],
}
VIT = SIZES[-1]


# ---- one run, in a process of its own ------------------------------------------------------------------------


def draw(n: int, dim: int, d: int, seed: int):
    import torch

    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, dim), (dim, d), (dim, d), (dim, d))
    x, *weights = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return [x, *(w / dim**0.5 for w in weights)]


def jacrev(x, w_q, w_k, w_v):
    """J by reverse-mode differentiation, (n·d, 3·D·d)."""
    import torch

    def attention(q, k, v):
        return ((x @ q) @ (x @ k).T * k.shape[-1] ** -0.5).softmax(-1) @ (x @ v)

    blocks = torch.func.jacrev(attention, argnums=(0, 1, 2))(w_q, w_k, w_v)
    return torch.cat([block.flatten(2).flatten(0, 1) for block in blocks], -1)


def curvlinops_svds(x, w_q, w_k, w_v) -> float:
    import torch
    from curvlinops import JacobianLinearOperator
    from scipy.sparse.linalg import svds
    from torch import nn

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Parameter(w) for w in (w_q, w_k, w_v))

        def forward(self, x):
            logits = (x @ self.q) @ (x @ self.k).mT * self.k.shape[-1] ** -0.5
            return (logits.softmax(-1) @ (x @ self.v)).flatten(1)

    head = Head()
    data = [(x.unsqueeze(0), torch.zeros(1, len(x) * w_v.shape[-1], dtype=x.dtype))]
    operator = JacobianLinearOperator(head, list(head.parameters()), data, check_deterministic=False).to_scipy()
    ends = [svds(operator, k=1, which=end, return_singular_vectors=False, random_state=0)[0] for end in ("LM", "SM")]
    return float(ends[0] / ends[1])


def kappa(way: str, head) -> dict:
    """κ and what the way says of it."""
    import torch

    from spectral_core import AttentionJacobian

    if way == "curvlinops + svds":
        return {"kappa": curvlinops_svds(*head)}
    if way == "jacrev + svdvals":
        values = torch.linalg.svdvals(jacrev(*head))
        return {"kappa": float(values[0] / values[-1])}
    if way == "jacrev + eigvalsh":
        j = jacrev(*head)
        values = torch.linalg.eigvalsh(j @ j.T)
        return {"kappa": float(values[-1] / values[0]) ** 0.5}
    result = AttentionJacobian(*head).condition_number(method=way)
    return {"kappa": float(result), "bound": float(result.bound), "converged": bool(result.converged)}


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process in MiB; `resource`'s own peak is inherited through exec, and so never used."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def run_one(way: str, size: tuple[int, int, int], seed: int, threads: int, device: str, repeats: int) -> dict:
    import torch

    torch.set_num_threads(threads)
    tiny, head = ([t.to(device) for t in draw(*s, seed)] for s in ((8, 32, 8), size))
    kappa(way, tiny)
    base = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
    seconds = []
    while len(seconds) < repeats and sum(seconds) < 20:
        began = time.perf_counter()
        found = kappa(way, head)
        seconds.append(time.perf_counter() - began)
    return found | {"seconds": statistics.median(seconds), "runs": len(seconds), "mib": resident("VmHWM") - base}


# ---- all runs --------------------------------------------------------------------------------------------------


def spawn(way: str, size: tuple[int, int, int], options: argparse.Namespace, device: str = "cpu") -> dict:
    command = [sys.executable, __file__, "--one", way, *map(str, size), "--device", device]
    command += ["--threads", str(options.threads), "--seed", str(options.seed)]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(options.gigabytes * 1e9),) * 2)

    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.limit,
            preexec_fn=limit if device == "cpu" else None, env=os.environ | {"OMP_NUM_THREADS": str(options.threads)},
        )
    except subprocess.TimeoutExpired:
        return {"fails": f"over {options.limit / 60:.0f} min"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        memory = any(word in done.stderr.lower() for word in ("memory", "alloc")) or done.returncode < 0
        return {"fails": f"over {options.gigabytes:.0f} GB" if memory else last[:80]}
    return json.loads(done.stdout.splitlines()[-1])


def name_run(way: str, size: tuple[int, int, int], options: argparse.Namespace) -> str:
    return f"{way} {size} threads {options.threads} seed {options.seed}"


def collect(options: argparse.Namespace) -> dict[str, dict]:
    store = {} if options.fresh or not STORE.exists() else json.loads(STORE.read_text())
    jobs = [(way, size) for size in SIZES for way in OURS]
    jobs += [("cholesky", size) for sizes in GROWTH.values() for size in sizes if size not in SIZES]
    jobs += [(way, size) for size in SIZES for way in reversed(PEERS)]
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        for way, size in progress.track(jobs, description="runs"):
            key = name_run(way, size, options)
            if key in store:
                continue
            smaller = [store[name_run(way, s, options)] for s in SIZES[: SIZES.index(size)]] if size in SIZES else []
            failed = next((one["fails"] for one in smaller if "fails" in one), None)
            store[key] = {"fails": f"{failed} at a smaller size"} if failed else spawn(way, size, options)
            console.print(key, store[key])
            STORE.write_text(json.dumps(store, indent=1) + "\n", encoding="utf-8")
    return store


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log time over log size by least squares."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(t) for t in seconds]).slope


# ---- the error of κ by κ ---------------------------------------------------------------------------------------


def graded(t: float, seed: int):
    """Orthogonal tokens of which the last moves on to the first as t falls from 1 to 0; κ(J) rises with 1/t."""
    import torch

    n, dim, d = 12, 24, 8
    x, w_q, _, w_v = draw(n, dim, d, seed)
    x = torch.linalg.qr(x.T).Q.T * dim**0.5
    x[-1] = t * x[-1] + (1 - t) * x[0]
    w_q = torch.linalg.qr(w_q).Q
    return [x, w_q, w_q, w_v]


def grade(target: float, seed: int):
    """A head with κ(J) within 1 % of `target`, or the nearest of its family."""
    low, high = -10.0, 0.0  # log₁₀ t
    for _ in range(40):
        middle = (low + high) / 2
        value = kappa("svd", graded(10**middle, seed))["kappa"]
        if abs(value / target - 1) < 0.01:
            break
        low, high = (low, middle) if value < target else (middle, high)
    return graded(10**middle, seed)


def measure_errors(seed: int, draws: int = 5) -> list[list[str]]:
    from spectral_core import AttentionJacobian

    rows = []
    for power in range(1, 10):
        true, errors, plain, takes = [], {way: [] for way in OURS}, [], set()
        for i in range(draws):
            head = grade(10.0**power, seed + i)
            true.append(kappa("jacrev + svdvals", head)["kappa"])
            plain.append(kappa("jacrev + eigvalsh", head)["kappa"])
            for way in OURS:
                found = kappa(way, head)
                errors[way].append(abs(found["kappa"] / true[-1] - 1) if found["converged"] else math.inf)
            takes.add(AttentionJacobian(*head).condition_number().method)
        real = [isinstance(p, float) for p in plain]  # the root of a negative eigenvalue is complex
        plain_error = max(abs(p / t - 1) if r else math.inf for p, t, r in zip(plain, true, real, strict=True))
        cells = [f"{max(errors[way]):.0e}" if max(errors[way]) < math.inf else "lower bound, says so" for way in OURS]
        noise = f"{plain_error:.0e}" if plain_error < 1 else "noise"
        rows.append([f"{min(true):.2g} … {max(true):.2g}", noise, *cells, " or ".join(sorted(takes))])
    return rows


# ---- the page --------------------------------------------------------------------------------------------------


def tabulate(store: dict[str, dict], options: argparse.Namespace) -> list[list[str]]:
    rows = []
    for size in SIZES:
        found = {way: store[name_run(way, size, options)] for way in (*PEERS, *OURS)}
        reference = next((found[way]["kappa"] for way in (*PEERS[:2], "svd", "gram") if "kappa" in found[way]), None)
        for way, one in found.items():
            name = [f"{size[0]}, {size[1]}, {size[2]}", way]
            if "fails" in one:
                rows.append([*name, f"does not fit ({one['fails']})", "", "", "", "", ""])
                continue
            base = found["cholesky"]
            off = "" if one["kappa"] == reference else f"{abs(one['kappa'] / reference - 1):.0e}"
            rows.append([
                *name, f"{one['seconds']:.3g}", f"{one['mib']:.0f}", f"{one['kappa']:.6g}", off,
                f"{one['seconds'] / base['seconds']:.3g}", f"{one['mib'] / base['mib']:.3g}",
            ])
    return rows


HEAD = ("n, D, d", "way", "seconds", "MiB", "κ", "off", "time / cholesky", "memory / cholesky")
ERRORS = ("κ(J)", "jacrev + eigvalsh", *OURS, "auto takes")


def verdicts(store: dict[str, dict], options: argparse.Namespace) -> list[str]:
    def get(way: str, size: tuple[int, int, int]) -> dict:
        return store[name_run(way, size, options)]

    def judge(text: str, met: bool) -> str:
        return f"* {text}: {'met' if met else 'missed'}."

    lines, size = [], SIZES[1]
    ours, svd, gram = get("cholesky", size), get("jacrev + svdvals", size), get("jacrev + eigvalsh", size)
    for peer, target in ((svd, 100), (gram, 20)):
        ratio, name = peer["seconds"] / ours["seconds"], "svdvals" if peer is svd else "eigvalsh"
        text = f"at {size} {ratio:.3g} times as fast as jacrev + {name} (target {target})"
        lines.append(judge(text, ratio >= target))
    share = ours["mib"] / svd["mib"]
    lines.append(judge(f"at {size} {share:.2f} of the memory of jacrev + svdvals (target 0.2)", share <= 0.2))
    vit, other = get("cholesky", VIT), get("gram", VIT)
    if "kappa" in vit and "kappa" in other:
        error = abs(vit["kappa"] / other["kappa"] - 1)
        met = error <= 1e-6 and vit["seconds"] <= 60 and vit["mib"] <= 6000
        lines.append(judge(
            f"at {VIT}, a ViT-B/16 head, {vit['seconds']:.3g} s and {vit['mib'] / 1024:.2g} GiB, {error:.0e} off the "
            f"full eigenvalue decomposition, own error bound {vit['bound']:.0e} (target 60 s, 6 GB, 1e-6)", met,
        ))
    return lines


def growth(store: dict[str, dict], options: argparse.Namespace) -> list[str]:
    lines = []
    for axis, sizes in GROWTH.items():
        seconds = [store[name_run("cholesky", s, options)]["seconds"] for s in sizes]
        values = [s["nD".index(axis)] for s in sizes]
        flops = [flop_count(*s) for s in sizes]
        fixed = f"D={sizes[0][1]}" if axis == "n" else f"n={sizes[0][0]}"
        lines.append(
            f"* {axis} from {values[0]} to {values[-1]} ({fixed}, d={sizes[0][2]}): "
            f"{', '.join(f'{t:.3g}' for t in seconds)} s; exponent {exponent(values, seconds):.2f}, of the counted "
            f"operations {exponent(values, flops):.2f}"
        )
    return lines


def flop_count(n: int, dim: int, d: int) -> float:
    """Operations of "cholesky": projections, QR, slopes, Gram, Cholesky, 30 products and 20 solves of 4 vectors."""
    m, r = n * d, min(n, dim)
    products = 30 * 4 * 2 * (2 * n * r * d + 4 * n**2 * d) + 20 * 4 * 2 * m**2
    return 6 * n * dim * d + 2 * n * dim * r + 2 * m * n * (r + d) + m**2 * (r + d) + m**3 / 3 + products


def gpu_lines(options: argparse.Namespace) -> str:
    import torch

    if not torch.cuda.is_available():
        return "On a GPU: not measured, none was at hand. The same code runs there; its path is tested on the CPU."
    rows = []
    for size in SIZES:
        for way in ("cholesky", "gram"):
            one = spawn(way, size, options, "cuda")
            cells = [f"{one['seconds']:.3g}", f"{one['kappa']:.6g}"] if "kappa" in one else [one["fails"], ""]
            rows.append([f"{size[0]}, {size[1]}, {size[2]}", way, *cells])
    return f"On {torch.cuda.get_device_name()}:\n\n" + markdown(("n, D, d", "way", "seconds", "κ"), rows)


def markdown(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(title: str, head: tuple[str, ...], rows: list[list[str]]) -> None:
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    console = Console()  # a pipe has no width of its own: keep the columns whole there
    (console if console.is_terminal else Console(width=150)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the heads (default 0)")
    parser.add_argument("--limit", type=float, default=600, help="seconds a run may take (default 600)")
    parser.add_argument("--gigabytes", type=float, default=20, help="memory a run may take (default 20)")
    parser.add_argument("--fresh", action="store_true", help="forget the runs of results/jacobian.json")
    parser.add_argument("--one", nargs=4, metavar=("WAY", "N", "D", "d"), help="a single run, printed as JSON")
    parser.add_argument("--device", default="cpu", help="of --one (default cpu)")
    options = parser.parse_args()
    if options.one:
        way, *size = options.one
        found = run_one(way, tuple(map(int, size)), options.seed, options.threads, options.device, repeats=5)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    store = collect(options)
    import torch

    torch.set_num_threads(options.threads)
    rows, errors = tabulate(store, options), measure_errors(options.seed)
    lines = "\n".join(verdicts(store, options))
    text = f"""# κ of the attention Jacobian: time, memory and agreement

`python benchmarks/jacobian.py --threads {options.threads} --seed {options.seed}`: torch {torch.__version__}, Python \
{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, torch threads: {options.threads}, float64.

{lines}

{markdown(HEAD, rows)}

One head with Gaussian x and Gaussian weights of standard deviation 1/√D. Every way runs in its own process: seconds are
the median of up to five runs, MiB the resident peak above what the process held before, "off" the relative difference
of κ from the first way of the list that ended. "Does not fit" is over {options.limit / 60:.0f} minutes or \
{options.gigabytes:.0f} GB.

Growth of "cholesky", least squares in log-log:

{chr(10).join(growth(store, options))}

{gpu_lines(options)}

Relative error of κ against jacrev and a dense SVD, the largest of 5 heads (n=12, D=24, d=8) a row:

{markdown(ERRORS, errors)}

A Gram matrix squares κ, so its smallest eigenvalue alone is off by about eps·κ²: see the column "jacrev + eigvalsh".
"gram" and "cholesky" repair it on J itself up to κ ≈ 2·10⁶ and give a lower bound beyond; "auto" then takes the SVD.
"""
    PAGE.write_text(text, encoding="utf-8")
    show("κ of the attention Jacobian, float64", HEAD, rows)
    show("Largest relative error of κ against jacrev + SVD", ERRORS, errors)
    Console().print(lines, "\n".join(growth(store, options)), f"written to results/{PAGE.name}", sep="\n")


if __name__ == "__main__":
    main()
