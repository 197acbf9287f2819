"""The bench: everyone computes the same, in turns, and nothing gets lost on the way to the table."""

import importlib
import json
import math
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from contracts import later
from torch.nn import BatchNorm2d
from trlearner.experiments.bench import __main__ as bench
from trlearner.experiments.bench import (
    contender,
    floor,
    ours,
    peers,
    record,
    session,
    stub,
    table,
    timing,
)
from trlearner.experiments.bench.learners import OTHERS, maml
from trlearner.experiments.bench.workload import (
    CURVES,
    WORKLOADS,
    conv,
    fingerprint,
    resnet,
    sinusoid,
    with_learner,
)

TINY = {
    "sinusoid-3": partial(sinusoid, 3, steps=2),
    "conv2-2step": partial(
        conv, "conv2-2step", steps=2, tasks=3, size=8, queries=2, filters=4, blocks=2
    ),
}
LAYERED = {
    "fingerprint-2": partial(fingerprint, 2),
    "resnet12-16": partial(resnet, size=16, widths=(4, 6, 8, 10)),
}
EAGER = [name for name in session.EVERYONE if not name.startswith(("compiled", "tune"))]


def built(name, workload):
    build, _ = session.EVERYONE[name]
    try:
        return build(workload)
    except (contender.Unavailable, ImportError) as reason:
        pytest.skip(f"{name} cannot run here: {reason}")


def reference(variant):
    build = partial(ours.ours, engine=ours.REFERENCE, variant=variant)
    return partial(contender.first_gradient, build)


@pytest.mark.filterwarnings("default")  # what peers warn of is their matter
@pytest.mark.parametrize("workload", ["sinusoid-3", *later("conv2-2step")])
@pytest.mark.parametrize("name", EAGER)
def test_everyone_computes_the_same_gradient(name, workload):
    _, variant = session.EVERYONE[name]
    exact = TINY[workload]().double()
    found = built(name, exact)
    found.step()
    assert contender.error(found.gradient(), reference(variant)(exact)) < 1e-7


@pytest.mark.full
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("workload", LAYERED)
@pytest.mark.parametrize("name", [*peers.PEERS, "channels_last", "batched"])
def test_on_networks_of_other_layers_too(name, workload):
    exact = LAYERED[workload]().double()
    found = built(name, exact)
    found.step()
    assert contender.error(found.gradient(), reference(ours.PLAIN)(exact)) < 1e-7


@pytest.mark.full
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", EAGER)
def test_in_single_precision_too_and_steps_can_be_repeated(name):
    workload, (build, variant) = TINY["sinusoid-3"](), session.EVERYONE[name]
    found = built(name, workload)
    found.step()
    off, precision = contender.check(name, workload, found, build, reference(variant))
    assert off < contender.TOLERANCE
    assert precision == "float32"
    found.step()


@pytest.mark.full
@pytest.mark.parametrize("name", EAGER)
def test_the_optimizer_moves_what_it_is_meant_to(name, monkeypatch):
    if name == peers.JAX:
        pytest.skip("keeps its parameters to itself")
    made = []
    workload = TINY["sinusoid-3"]()

    def build():
        made.append(workload.build())
        return made[-1]

    found = built(name, replace(workload, build=build))
    before = [p.clone() for p in made[0].parameters()]
    found.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, made[0].parameters(), strict=True)]
    assert len(made) == 1 and all(moved)


@pytest.mark.full
@pytest.mark.parametrize("name", CURVES)
def test_other_learners_have_no_peers_but_the_same_engines(name, monkeypatch):
    monkeypatch.setattr(timing, "TURN", 0.0)
    workload = with_learner(name, TINY["sinusoid-3"]).double()
    assert workload.name == f"{name} on sinusoid-3"
    found = session.run(workload, ["plain*", "vmap*", "loop", "batched"], rounds=1, budget=0.0)
    assert list(found.rows) == ["loop", "batched"]
    assert found.left_out["vmap(grad)"] == "takes steps of MAML only"
    assert found.rows["batched"].start.error < 1e-7
    flops = {
        make: floor.work(replace(workload, make=make), [""])[""].flops
        for make in (maml, workload.make)
    }
    if name == "T-Net":
        assert flops[workload.make] > flops[maml]
    elif name == "MetaSGD":
        assert flops[workload.make] == flops[maml]
    else:
        assert flops[workload.make] < flops[maml]


def test_prototypes_need_no_head():
    workload = with_learner("ProtoNet", TINY["conv2-2step"])
    assert set(OTHERS) - set(CURVES) == {"ProtoNet"}
    learner = workload.learner(workload.net(), "loop")
    answers = learner.adapt(workload.batch.support, workload.loss)(workload.batch.query)
    assert answers.shape == (3, 2 * 5, 5)  # tasks, queries of five classes, classes


def test_variants_differ():
    workload = TINY["sinusoid-3"]()
    plain, full, part = (reference(variant)(workload) for variant in ours.VARIANTS)
    for one, other in ((plain, full), (plain, part), (full, part)):
        assert contender.error(one, other) > 1e-3


def test_batch_norm_inside_vmap_of_grad_still_needs_mending(monkeypatch):
    """Fails once PyTorch is right: then `peers.Normalized` can go."""
    workload = TINY["conv2-2step"]().double()
    expected = reference(ours.PLAIN)(workload)
    monkeypatch.setattr(peers, "mended", lambda net: net)
    wrong = contender.first_gradient(peers.vmap_of_grad, workload)
    assert contender.error(wrong, expected) > 1e-3


def test_mending_keeps_the_parameters_and_the_function():
    net = TINY["conv2-2step"]().net()
    mended = peers.mended(net)
    assert [id(p) for p in mended.parameters()] == [id(p) for p in net.parameters()]
    assert not any(isinstance(m, BatchNorm2d) for m in mended)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(mended(x), net(x), rtol=1e-5, atol=1e-6)


def test_mending_reaches_layers_inside_of_layers():
    make = LAYERED["resnet12-16"]()
    net, mended = make.net(), peers.mended(make.net())
    assert not any(isinstance(m, BatchNorm2d) for m in mended.modules())
    names = [tuple(p.shape) for p in net.parameters()]
    assert [tuple(p.shape) for p in mended.parameters()] == names
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(mended(x), net(x), rtol=1e-5, atol=1e-5)


def scaled(build, factor, precisions=(torch.float32, torch.float64)):
    """A contender whose gradient is off by a factor, in some precisions."""

    def other(workload):
        made = build(workload)
        off = factor if workload.batch.query.x.dtype in precisions else 1.0
        return replace(made, gradient=lambda: [off * t for t in made.gradient()])

    return other


def test_a_contender_with_another_gradient_is_refused():
    workload, build = TINY["sinusoid-3"](), scaled(peers.plain_loop, 1.001)
    made = build(workload)
    made.step()
    with pytest.raises(ValueError, match="'cheat' must compute .* off by 1.0e-03 even in float64"):
        contender.check("cheat", workload, made, build, reference(ours.PLAIN))


def test_rounding_is_told_from_another_gradient():
    workload, build = TINY["sinusoid-3"](), scaled(peers.plain_loop, 1.001, [torch.float32])
    made = build(workload)
    made.step()
    off, precision = contender.check("rounds", workload, made, build, reference(ours.PLAIN))
    assert off < 1e-12 and precision == "float64"


def test_a_gradient_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match="shapes"):
        contender.error([torch.zeros(3)], [torch.zeros(1, 3)])


def test_nan_is_no_agreement():
    workload, build = TINY["sinusoid-3"](), scaled(peers.plain_loop, float("nan"))
    made = build(workload)
    made.step()
    with pytest.raises(ValueError, match="off by nan"):
        contender.check("nan", workload, made, build, reference(ours.PLAIN))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], True),
        (["compiled*"], True),
        (["loop*", "compiled"], False),
        (["!compiled*"], False),
        (["!loop*"], True),
        (["!compiled*@conv4*"], False),
        (["!compiled*@sinusoid*"], True),
        (["compiled*", "!* + TRLearner"], False),
        (["*@sinusoid*"], False),
    ],
)
def test_patterns_choose_contenders(patterns, expected):
    assert contender.wanted("compiled + TRLearner", "conv4-1step", patterns) is expected


def test_a_round_takes_each_once_in_an_order_of_its_own():
    names = "abcdef"
    rounds = list(timing.schedule(dict.fromkeys(names, 10)))
    assert len(rounds) == 10
    assert all(sorted(order) == sorted(names) for order in rounds)
    assert len({tuple(order) for order in rounds}) > 5


def test_few_turns_are_spread_evenly():
    rounds = list(timing.schedule({"slow": 3, "fast": 9}))
    assert [("slow" in names) for names in rounds] == [False, False, True] * 3
    assert all("fast" in names for names in rounds)


def fake(seconds):
    """Steps that take so many seconds by a clock that only they move; and who ran when."""
    now, ran = [0.0], []

    def step(name):
        ran.append(name)
        now[0] += seconds[name]

    return {name: partial(step, name) for name in seconds}, lambda: now[0], ran


def test_turns_interleave_and_give_medians():
    steps, clock, ran = fake({"a": 0.2, "b": 0.1})
    found = timing.measure(steps, rounds=4, budget=100, clock=clock)
    assert ran[:2] == ["a", "b"]  # to see how long they take
    assert [sorted(ran[i : i + 2]) for i in range(2, 10, 2)] == [["a", "b"]] * 4
    assert found["a"].median == pytest.approx(200)
    assert found["b"].quartiles == pytest.approx((100, 100))


def test_short_steps_share_a_turn_and_slow_ones_get_fewer():
    steps, clock, ran = fake({"short": 0.005, "slow": 2.0, "slower": 50.0})
    found = timing.measure(steps, rounds=8, budget=10, clock=clock)
    assert {name: len(t.milliseconds) for name, t in found.items()} == {
        "short": 8,
        "slow": 5,
        "slower": timing.FEWEST,
    }
    assert found["short"].steps == 10
    assert ran.count("short") == 81
    assert found["short"].median == pytest.approx(5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What a run over tiny workloads returns, prints and writes."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    path, printed = tmp_path_factory.mktemp("bench") / "bench.json", StringIO()
    patterns = ["plain*", "loop*", "batched*", "!batched*@conv*"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(bench, "WORKLOADS", TINY)
        patch.setattr(timing, "TURN", 0.0)
        patch.setattr(table, "SLOW_START", math.inf)  # on a busy machine any first step is late
        patch.delenv("NPROC", raising=False)
        with redirect_stderr(StringIO()):
            arguments = [
                "--workloads",
                "*",
                "--rounds",
                "4",
                "--budget",
                "0.2",
                "--json",
                str(path),
            ]
            results = bench.main([*arguments, "--contenders", *patterns])
    return results, printed.getvalue(), json.loads(path.read_text())


@pytest.mark.full
def test_workloads_are_added_to_a_file(finished):
    _, _, written = finished
    first, second = written["workloads"]
    old = {**written, "settings": {"rounds": 7}, "workloads": {first: {}, second: {"old": True}}}
    new = {**written, "workloads": {second: written["workloads"][second]}}
    found = record.added(old, new)
    assert found["workloads"] == {first: {"settings": {"rounds": 7}}, **new["workloads"]}
    assert found["settings"] == written["settings"]


@pytest.mark.full
def test_every_row_is_there(finished):
    results, printed, written = finished
    rows = ["plain higher", "plain functional_call"]
    rows += [f"{e}{v}" for e in ("loop", "batched") for v in ours.VARIANTS]
    for workload, found in results.items():
        here = [r for r in rows if not (workload.startswith("conv") and r.startswith("batched"))]
        assert list(found.rows) == here
        assert list(written["workloads"][workload]["contenders"]) == here
    lines = [line[2:34].rstrip() for line in printed.splitlines() if line.startswith("  ")]
    assert [line for line in lines if line in rows] == [
        *rows,
        *rows,
    ]  # milliseconds, times the floor


@pytest.mark.full
def test_the_file_holds_what_the_table_shows(finished):
    results, _, written = finished
    assert set(written["machine"]) == {"cpu", "cores", "threads", "system"}
    assert written["versions"]["torch"] == importlib.metadata.version("torch")
    assert written["settings"] == {"rounds": 4, "budget_seconds": 0.2}
    for workload, part in written["workloads"].items():
        base = part["contenders"][peers.BASE]
        assert base["times_plain_higher"] == 1
        for name, row in part["contenders"].items():
            low, high = row["quartiles_ms"]
            assert 0 < low <= row["median_ms"] <= high
            assert row["median_ms"] == results[workload].rows[name].timing.median
            assert 3 <= row["turns"] <= 4
            assert row["gradient_error"] < 1e-4
        plain = {n: r["median_ms"] for n, r in part["contenders"].items() if "TRL" not in n}
        peer, best = part["best_peer"], part["best_ours"]
        assert peer["median_ms"] == min(v for n, v in plain.items() if n in peers.PEERS)
        assert best["median_ms"] == min(v for n, v in plain.items() if n in ours.OURS)
        assert best["times_best_peer"] == pytest.approx(peer["median_ms"] / best["median_ms"])
        assert best["times_jax.jit"] is None
        found, least = results[workload].floor, part["floor"]["meta_step"]
        assert set(least) == {f"loop{v}" for v in ours.VARIANTS}
        for variant in ours.VARIANTS:
            assert least[f"loop{variant}"]["floor_ms"] == found.milliseconds(variant) > 0
            assert least[f"loop{variant}"]["flops"] == found.work[variant].flops


def row(milliseconds, first=0.0, busy=1.0):
    start = session.Start(first, 1e-7, "float32")
    return session.Row(ours.PLAIN, start, timing.Timing((milliseconds,) * 3, 1, busy))


def test_the_texts_say_who_leads_and_what_to_doubt():
    found = session.Found(
        {
            "plain higher": row(100),
            "vmap(grad)": row(20),
            "jax.jit": row(2, first=7),
            "loop": row(90),
            "compiled": row(4, first=30, busy=0.5),
            "compiled + TRLearner": replace(row(1), variant=" + TRLearner"),
        },
        {"torchopt": "No module named 'torchopt'"},
    )
    results = {"sinusoid-4": found}
    assert "compiled 4.0 (25.0) [3]" in " ".join(table.table(results, 5).split())
    assert "[" not in table.table(results, 3).replace("[brackets]", "")
    assert table.starts(results).split() == [
        *("first", "step,", "seconds", "sinusoid-4", "jax.jit", "7.0", "compiled", "30.0")
    ]
    assert table.floors(results) == ""
    work = {v: floor.Work(3_000_000, 2500) for v in ours.VARIANTS}
    slow = timing.Timing((2.0,) * 3, 1, 1.0)
    known = replace(found, floor=floor.Floor(work, floor.Work(6_000_000, 1), slow))
    shown = " ".join(table.floors({"sinusoid-4": known}).split())
    assert "plain higher 100 vmap(grad) 20.0" in shown and "compiled 4.0" in shown
    assert "3 M, 2.5 kB" in shown
    said = table.conclusions(results)
    assert "'compiled', 5.00 times as fast as the best peer, 'vmap(grad)'" in said
    assert "0.50 times as fast as 'jax.jit'" in said
    assert "Left out: 'torchopt': No module" in said
    assert table.disturbance(results, 1) == ""
    crowded = session.Found({"loop": row(1, busy=0.5), "jax.jit": row(1, busy=1.9)})
    crowded.rows["higher"] = row(1, busy=0.6)
    said = table.disturbance({"w": crowded}, 1)
    assert "ran for 60%" in said and "'jax.jit' on w used 1.9 threads, not 1" in said


def test_who_cannot_run_is_left_out_with_the_reason(monkeypatch):
    def gone(workload):
        raise contender.Unavailable("not today")

    monkeypatch.setitem(session.EVERYONE, "torchopt", (gone, ours.PLAIN))
    found = session.run(TINY["sinusoid-3"](), ["torchopt", "batched"], rounds=1, budget=0.1)
    assert found.left_out == {"torchopt": "not today"}
    assert list(found.rows) == ["batched"]


def test_who_takes_too_long_runs_only_if_asked_for_by_name():
    workload = replace(TINY["sinusoid-3"](), left_out={"batched + *": "hours"})
    ran = [["batched*"], ["!*"], ["!x"], []]
    reasons = [contender.too_long("batched + TRLearner", workload, patterns) for patterns in ran]
    assert reasons == [None, "hours", "hours", "hours"]
    assert contender.too_long("batched", workload, []) is None
    everyone = ["loop*", "plain*", "*(*", "jax*", "torch*", "learn*", "par*", "ch*", "comp*"]
    found = session.run(
        workload, ["!auto*", "!higher*", *(f"!{p}" for p in everyone)], rounds=1, budget=0.1
    )
    assert list(found.rows) == ["batched"]
    assert set(found.left_out.values()) == {"hours"}
    assert found.floor is not None and list(found.floor.work) == [ours.PLAIN]


def test_learn2learn_is_taken_from_sources_without_the_rest(monkeypatch, tmp_path):
    package = tmp_path / "learn2learn"
    (package / "algorithms").mkdir(parents=True)
    for parent in (package, package / "algorithms"):
        (parent / "__init__.py").write_text("raise ImportError('the rest')\n")
    (package / "helper.py").write_text("VALUE = 3\n")
    (package / "algorithms" / "maml.py").write_text(
        "from learn2learn.helper import VALUE as MAML\n"
    )
    for folder in (tmp_path, package):
        monkeypatch.setenv(stub.VARIABLE, str(folder))
        assert stub.learn2learn_maml().MAML == 3
        assert not [name for name in sys.modules if name.startswith("learn2learn")]
    monkeypatch.setenv(stub.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(
        contender.Unavailable, match="no learn2learn/algorithms/maml.py in .*nowhere"
    ):
        stub.learn2learn_maml()


@pytest.mark.parametrize(
    "wrong", [["--rounds", "0"], ["--threads", "0"], ["--workloads", "sinusoid"]]
)
def test_senseless_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        bench.parse(wrong)
    assert "error: --" in capsys.readouterr().err


def test_workloads_are_called_what_they_are_listed_as():
    assert {name: make().name for name, make in WORKLOADS.items()} == {n: n for n in WORKLOADS}
    assert bench.parse([]).workloads == [n for n in WORKLOADS if n[:4] == "sinu"] + ["conv4-1step"]
    assert bench.parse(["--workloads", "*"]).workloads == list(WORKLOADS)
    assert bench.parse(["--workloads", "conv*step"]).workloads == ["conv4-1step", "conv4-5step"]
