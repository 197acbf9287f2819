"""The count of a meta-step's work, against sums by hand."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from trlearner.experiments.bench import floor
from trlearner.experiments.bench.timing import Timing
from trlearner.experiments.bench.workload import Workload, fingerprint

import trlearner as tr

TASKS, SHOTS, QUERIES, STEPS, IN, OUT = 3, 4, 5, 2, 6, 7


def linear(steps: int = STEPS) -> Workload:
    draw = torch.Generator().manual_seed(0)

    def pair(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = (torch.rand(TASKS, samples, width, generator=draw) for width in (IN, OUT))
        return x, y

    return Workload(
        "linear",
        lambda: nn.Sequential(nn.Linear(IN, OUT, bias=False)),
        tr.TaskBatch(pair(SHOTS), pair(QUERIES)),
        mse_loss,
        0.1,
        steps,
        lambda net: tr.LabelledEncoder(None, dim=8),
    )


def test_a_matrix_product_is_two_operations_an_entry_and_three_matrices_of_bytes() -> None:
    a, b = torch.rand(2, 3), torch.rand(3, 5)
    found = floor.count(lambda: a @ b)
    assert found.flops == 2 * 2 * 3 * 5
    assert found.bytes == 4 * (6 + 15 + 10)


def test_views_cost_nothing() -> None:
    a = torch.rand(4, 4)
    assert floor.count(lambda: a.T[1:].reshape(3, 4)[:, :2]).flops == 0
    assert floor.count(lambda: a.T[1:]).bytes == 0


def test_plain_passes_run_every_sample_forward_and_back() -> None:
    samples = TASKS * (STEPS * SHOTS + QUERIES)
    one_product = 2 * samples * IN * OUT
    # The inputs need no gradient, so the way back is one product: the weight's.
    assert floor.count(floor.plain_step(linear())).flops == 2 * one_product


def test_a_meta_step_without_inner_steps_is_its_plain_passes() -> None:
    found = floor.work(linear(steps=0))[""]
    assert found.flops == floor.count(floor.plain_step(linear(steps=0))).flops


def test_inner_steps_of_second_order_cost_a_known_number_of_products() -> None:
    support, query = (2 * samples * IN * OUT for samples in (SHOTS, QUERIES))
    found = floor.work(linear())[""].flops
    # On the way there two products of each step, one of the queries. On the way back one of the queries;
    # of each step the Hessian is asked: through the gradient's product and through the prediction's.
    least = TASKS * (STEPS * 2 * support + 2 * query)
    most = least + TASKS * STEPS * 3 * support
    assert least < found <= most


@pytest.mark.full
def test_a_task_more_costs_engine_loop_what_the_one_before_did() -> None:
    """Bytes: a gradient of the size of all models for each one of them would make it a square."""
    few, more = (floor.work(fingerprint(tasks), [""])[""].bytes for tasks in (4, 8))
    assert more < 2.05 * few


def test_only_variants_that_are_asked_for_are_counted() -> None:
    assert list(floor.work(linear(), [" + TRLearner"])) == [" + TRLearner"]


def test_the_term_is_more_work_and_its_part_of_the_queries_less() -> None:
    found = floor.work(linear())
    plain, full, part = (found[v].flops for v in ("", " + TRLearner", " + TRLearner, queries=0.3"))
    assert plain < part < full
    # Every model predicts every other task's queries, and the weight's gradient goes back.
    assert full - plain >= TASKS * (TASKS - 1) * 2 * QUERIES * 2 * IN * OUT


def test_the_floor_is_in_proportion_to_the_work() -> None:
    timing = Timing((2.0, 4.0, 3.0), 1, 1.0)
    found = floor.Floor({"": floor.Work(300, 1)}, floor.Work(100, 1), timing)
    assert found.milliseconds("") == pytest.approx(9.0)
