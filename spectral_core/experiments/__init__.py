"""Does conditioning improve transformers? Tasks, arms, runs, statistics and the report, each small.

    from spectral_core.experiments import TASKS, ARMS, Run, train
    record = train(Run("digits", "polar", seed=0, lr=3e-3))

On the command line: `spectral-core train digits --arm polar --seed 0`, and `spectral-core evidence` for comparisons.
"""

from spectral_core.experiments.arms import ARMS, Arm
from spectral_core.experiments.registry import TASKS
from spectral_core.experiments.run import Run, train
from spectral_core.experiments.sweep import Sweep, make_runs
from spectral_core.experiments.task import Setting, Task

__all__ = ["ARMS", "TASKS", "Arm", "Run", "Setting", "Sweep", "Task", "make_runs", "train"]
