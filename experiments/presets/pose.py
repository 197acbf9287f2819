"""Few-shot orientation regression.

The published setting (``pose_code/maml_vanilla.py`` of Yin et al.) takes seconds for a step on a CPU. It is

    --learner maml --tasks 10 --inner-lr 0.002 --outer-lr 0.0005 --steps 10000 --test-steps 20
    --options size=128 filters=64

What is preset is small: whatever had the least error on validation tasks after 75 seconds of one core.
First-order MAML at an inner rate of 0.05 came to 5.0 (at 0.01 to 5.2, at 0.1 to 5.5), MetaSGD of three steps
to 5.0, MAML of three to 6.1; ANIL stayed at the 8.3 of a constant answer. The relation term looks at the two
most related objects, because all seven others would take twice the time.
"""

from trlearner.experiments.presets.preset import Memory, Preset

YIN = "tasks of Yin et al. 2020 (arXiv 1912.03820); ours: first order, 32 x 32, 16 filters, for two cores"
VIEWS = {
    "learner": "fomaml",
    "shots": 10,
    "queries": 10,
    "tasks": 8,
    "inner_lr": 0.05,
    "steps": 400,
    "validate_every": 100,
    "validation_tasks": 60,
    "test_tasks": 300,
    "average": 0.99,
    "top_k": 2,
    "options": {"size": 32, "filters": 16},
}
REMEMBERED = Memory(tasks=50, samples=60)

PRESETS = {
    "pose/procedural": Preset(VIEWS, YIN, REMEMBERED),
    "pose/meshes": Preset(VIEWS, YIN, REMEMBERED),
    "pose/pickles": Preset({**VIEWS, "options": {"filters": 16}}, YIN, REMEMBERED),
}
