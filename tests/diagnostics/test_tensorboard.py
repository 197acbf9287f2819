"""The real TensorBoard, asked over HTTP for what a monitor wrote."""

import io
import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import contracts
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

import trlearner as tr

WAIT = 90.0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a TensorBoard that shows a short run."""
    folder: pathlib.Path = tmp_path_factory.mktemp("runs")
    encoder = tr.LabelledEncoder(None, dim=5, features=contracts.INPUTS, targets=contracts.OUTPUTS)
    reg = tr.TRLearner(encoder=encoder).double()
    learner = contracts.learner("maml", contracts.net(), "batched")
    with SummaryWriter(str(folder / "mine")) as writer:
        reg.monitor = tr.RelationMonitor(writer, every=1, families=str.upper)
        for step in range(3):
            batch = contracts.regression_batch(step)
            reg(learner, tr.TaskBatch(batch.support, batch.query, ids=list("abcd")))
        reg.monitor.hparams({"lam": 0.1}, {"best validation": 0.5})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--load_fast=false"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        try:
            yield _ready(f"http://127.0.0.1:{port}", server)
        finally:
            server.kill()  # a polite signal was lost once, and the suite waited for ever


def _ready(address: str, server: "subprocess.Popen[bytes]") -> str:
    until = time.monotonic() + WAIT
    while time.monotonic() < until and server.poll() is None:
        try:
            if "mine" in ask(address, "runs"):
                return address
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"TensorBoard did not answer within {WAIT} s")


def get(address: str, path: str, **query: str | int) -> bytes:
    url = f"{address}/data/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())


def ask(address: str, path: str, **query: str | int) -> Any:
    return json.loads(get(address, path, **query))


def test_it_lists_the_curves_and_their_values(address: str) -> None:
    tags = ask(address, "plugin/scalars/tags")["mine"]
    assert {"trlearner.loss/own", "trlearner.truth/purity", "best validation"} <= set(tags)
    points = ask(address, "plugin/scalars/scalars", tag="trlearner.loss/lambda", run="mine")
    assert [(step, value) for _, step, value in points] == [
        (step, pytest.approx(0.1)) for step in range(3)
    ]


def test_it_serves_a_picture(address: str) -> None:
    tag = "trlearner.relations/clustered"
    (first, *_) = ask(address, "plugin/images/images", tag=tag, run="mine", sample=0)
    assert first["step"] == 0
    found = get(address, f"plugin/images/individualImage?{first['query']}")
    picture = Image.open(io.BytesIO(found))
    assert picture.format == "PNG" and min(picture.size) > 100


@pytest.mark.full
def test_it_has_the_page_of_curves_the_projector_the_text_and_the_settings(address: str) -> None:
    layout = ask(address, "plugin/custom_scalars/layout")
    assert layout["category"][0]["title"] == "TRLearner"
    assert len(layout["category"][0]["chart"]) >= 8
    runs = ask(address, "plugin/projector/runs")
    assert "mine" in runs
    points = ask(address, "plugin/projector/info", run="mine")["embeddings"]
    assert points[0]["tensorName"].startswith("tasks") and points[0]["tensorShape"] == [4, 5]
    assert "trlearner.configuration/text_summary" in ask(address, "plugin/text/tags")["mine"]
    request = urllib.request.Request(
        f"{address}/data/plugin/hparams/experiment",
        data=b"{}",
        method="POST",
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        experiment = json.load(answer)
    assert [info["name"] for info in experiment["hparamInfos"]] == ["lam"]
