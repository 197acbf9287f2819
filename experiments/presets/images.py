"""N-way K-shot classification."""

from trlearner.experiments.presets.preset import Preset

FINN = "steps and rates of Finn et al. 2017 (arXiv 1703.03400), fewer meta-steps"
# One inner step at 0.4 for Omniglot-like characters, five at 0.01 for photographs.
CHARACTERS = {
    "shots": 1,
    "queries": 5,
    "tasks": 8,
    "inner_steps": 1,
    "inner_lr": 0.4,
    "steps": 400,
    "validate_every": 100,
    "validation_tasks": 60,
    "learner": "anil",
    "relation_queries": 0.5,
}
PHOTOGRAPHS = {**CHARACTERS, "tasks": 4, "inner_steps": 5, "inner_lr": 0.01}

PRESETS = {
    "images/glyphs": Preset(CHARACTERS, FINN),
    "images/omniglot": Preset(CHARACTERS, FINN),
    "images/omniglot-alphabets": Preset(CHARACTERS, FINN),
    "images/grocery": Preset(PHOTOGRAPHS, FINN),
    "images/folder": Preset(PHOTOGRAPHS, FINN),
}
