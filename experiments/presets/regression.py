"""Curves."""

from trlearner.experiments.presets.preset import Memory, Preset

OURS = "inner rate as the demo's, which was tuned for MAML alone"
CURVES = {"inner_lr": 0.01, "inner_steps": 5, "steps": 4000, "average": 0.99}
REMEMBERED = Memory(tasks=300, samples=60)

PRESETS = {
    "regression/sinusoid": Preset(
        CURVES,
        f"tasks: Rethinking Meta-Learning from a Learning Lens (arXiv 2409.08474); rates {OURS}",
        REMEMBERED,
    ),
    "regression/sinusoid-classic": Preset(
        CURVES, f"tasks: Finn et al. 2017 (arXiv 1703.03400); rates {OURS}", REMEMBERED
    ),
    "regression/harmonic": Preset(
        {**CURVES, "shots": 10},
        f"tasks after Lacoste et al. 2018 (arXiv 1806.07528); rates {OURS}",
        REMEMBERED,
    ),
    "regression/sinusoid-line": Preset(
        {**CURVES, "shots": 10},
        f"tasks after Finn et al. 2018 (arXiv 1806.02817); rates {OURS}",
        REMEMBERED,
    ),
    "regression/families": Preset(
        {**CURVES, "shots": 10},
        f"families after Yao et al. 2019 (arXiv 1905.05301); rates {OURS}",
        REMEMBERED,
    ),
}
