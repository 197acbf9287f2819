"""Pictures of matrices, read pixel by pixel."""

import io

import numpy as np
import pytest
from PIL import Image

from trlearner.diagnostics.monitor.heatmap import CELL, MOST, heatmap, mosaic
from trlearner.diagnostics.monitor.palette import AMOUNT, MISSING, SIGNED, colour, limits


def count(picture: np.ndarray, what: tuple[int, ...] | np.ndarray) -> int:
    return int((picture == np.array(what, dtype=np.uint8)).all(-1).sum())


def test_every_cell_has_the_colour_of_its_number() -> None:
    m = np.array([[1.0, 0.2, 0.8], [0.2, 1.0, np.nan], [0.8, 0.5, 1.0]])
    picture = heatmap(m)
    area = CELL * CELL
    low, high = AMOUNT[0], AMOUNT[-1]
    # The bar has both ends of the palette as well: one row of pixels each.
    assert 2 * area <= count(picture, low) < 2 * area + CELL
    assert 2 * area <= count(picture, high) < 2 * area + CELL
    assert area <= count(picture, AMOUNT[2]) < area + CELL
    assert count(picture, MISSING) == area


def test_rows_are_rows() -> None:
    m = np.zeros((3, 3))
    m[0, 2] = 1.0
    picture = heatmap(m, ["a", "b", "c"])
    ys, xs = np.where((picture == AMOUNT[-1].astype(np.uint8)).all(-1))
    cell = ys < ys.min() + CELL
    rows, columns = np.where((picture == AMOUNT[0].astype(np.uint8)).all(-1))
    assert ys[cell].min() <= rows.min()  # the first row
    assert xs[cell].min() > columns.min() + CELL  # not in the first column


def test_zero_is_white_where_some_are_negative() -> None:
    assert limits(np.array([-0.2, 0.6])) == (-0.6, 0.6, True)
    shown = colour(np.array([-0.6, 0.0, 0.6]), -0.6, 0.6, signed=True)
    assert shown.tolist() == SIGNED[[0, 2, 4]].astype(int).tolist()


def test_equal_numbers_show_no_structure() -> None:
    low, high, signed = limits(np.array([0.5, 0.5 + 1e-9]))
    assert high - low == pytest.approx(1e-3)
    assert not signed
    assert limits(np.array([np.nan])) == (0.0, 1.0, False)


def test_the_diagonal_is_shown_when_it_says_something() -> None:
    m = np.array([[0.0, 1.0], [1.0, 0.0]])
    hidden, shown = heatmap(m), heatmap(m, diagonal=True)
    assert count(shown, AMOUNT[0]) >= count(hidden, AMOUNT[0]) + 2 * CELL * CELL


def test_names_change_the_picture_and_long_ones_do_not_widen_it_without_end() -> None:
    m = np.eye(2)
    plain, named = heatmap(m, ["", ""]), heatmap(m, ["sine", "line"])
    assert named.shape[1] > plain.shape[1]
    assert heatmap(m, ["x" * 1000, "y"]).shape[1] < 400


@pytest.mark.parametrize("tasks", [1, 2, 3, 16, 64, 300, 512, 700])
def test_any_number_of_tasks_gives_a_picture_of_bounded_size(tasks: int) -> None:
    m = np.random.default_rng(0).uniform(-1, 1, (tasks, tasks))
    picture = heatmap(m, [f"task {i}" for i in range(tasks)], "noise, which compresses worst")
    assert picture.dtype == np.uint8
    assert max(picture.shape) < 500
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    assert len(file.getvalue()) < 200_000


def test_many_tasks_are_averaged_in_blocks() -> None:
    tasks = 2 * MOST
    m = np.zeros((tasks, tasks))
    m[: tasks // 2, tasks // 2 :] = 1.0
    picture = heatmap(m, [""] * tasks)
    quarter = (MOST // 2) ** 2
    assert quarter <= count(picture, AMOUNT[-1]) < quarter + 100


def test_columns_may_be_other_things_than_rows() -> None:
    m = np.zeros((2, 5))
    m[1, 1], m[0, 4] = 1.0, 1.0
    picture = heatmap(m, ["new", "newer"], columns=list("abcde"))
    ys, xs = np.where((picture == AMOUNT[-1].astype(np.uint8)).all(-1))
    corner = np.where((picture == AMOUNT[0].astype(np.uint8)).all(-1))
    cells = {
        ((y - corner[0].min()) // CELL, (x - corner[1].min()) // CELL)
        for y, x in zip(ys, xs, strict=True)
        if x < corner[1].min() + 5 * CELL
    }
    assert cells == {(1, 1), (0, 4)}  # no diagonal is left out


def test_pictures_stand_two_by_two() -> None:
    one, two = heatmap(np.eye(2)), heatmap(np.eye(16))
    three = mosaic([one, two, one])
    tall, wide = two.shape[:2]
    assert three.shape == (2 * tall, 2 * wide, 3)
    np.testing.assert_array_equal(three[: len(one), : one.shape[1]], one)
    np.testing.assert_array_equal(three[:tall, wide:], two)
    np.testing.assert_array_equal(three[tall : tall + len(one), : one.shape[1]], one)


def test_for_print_it_is_larger() -> None:
    small, large = heatmap(np.eye(3)), heatmap(np.eye(3), scale=3)
    assert large.shape[0] == pytest.approx(3 * small.shape[0], rel=0.05)
