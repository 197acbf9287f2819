"""Few-shot bioactivity regression."""

from trlearner.experiments.presets.preset import Memory, Preset

YAO = "tasks after Yao et al. 2021 (arXiv 2007.13040); ANIL, for MAML of this net takes 20 times as long"
ASSAYS = {
    "learner": "anil",
    "shots": 10,
    "queries": 20,
    "inner_lr": 0.05,
    "steps": 2000,
    "average": 0.99,
}
REMEMBERED = Memory(tasks=300, samples=100)
# Test tasks: all that there are.
PRESETS = {
    "drugs/synthetic": Preset({**ASSAYS, "test_tasks": 100}, YAO, REMEMBERED),
    "drugs/csv": Preset(ASSAYS, YAO, REMEMBERED),
    "drugs/simpd": Preset({**ASSAYS, "validation_tasks": 13, "test_tasks": 22}, YAO, REMEMBERED),
    "drugs/pqsar": Preset({**ASSAYS, "validation_tasks": 76, "test_tasks": 100}, YAO, REMEMBERED),
}
