"""Few-shot orientation regression."""

from trlearner.experiments.presets.preset import Preset

YIN = (
    "tasks of Yin et al. 2020 (arXiv 1912.03820); ANIL, small images and few filters for two cores"
)
VIEWS = {
    "learner": "anil",
    "shots": 10,
    "queries": 10,
    "tasks": 8,
    "inner_lr": 0.05,
    "steps": 600,
    "validate_every": 100,
    "validation_tasks": 60,
    "test_tasks": 300,
    "average": 0.99,
    "options": {"size": 64, "filters": 16},
}

PRESETS = {
    "pose/procedural": Preset(VIEWS, YIN),
    "pose/meshes": Preset(VIEWS, YIN),
    "pose/pickles": Preset({**VIEWS, "options": {"filters": 16}}, YIN),
}
