"""Two hosts that share a file system and reach each other by network alone: network namespaces."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.cluster.launching import SCRIPT, tiny
from tests.train.runs import losses

pytestmark = pytest.mark.slow
NAMES = ("llava-test-0", "llava-test-1")
# The first node makes the language model.
SETTINGS = {
    "MODEL_PATH": "", "N_LAYER": "1", "N_EMBD": "32", "N_HEAD": "2", "N_POSITIONS": "128", "VOCAB_SIZE": "300",
    "MAX_STEPS": "6", "SAVE_STEPS": "100",
}  # fmt: skip
MORE = ["--preflight", "off"]


@pytest.fixture
def hosts():
    """Names of two namespaces, with the addresses 10.99.0.1 and 10.99.0.2 on a cable between them."""
    commands = [["netns", "add", name] for name in NAMES]
    commands.append(["link", "add", "llavat0", "netns", NAMES[0], "type", "veth", "peer", "name", "llavat1", "netns",
                     NAMES[1]])  # fmt: skip
    for i, name in enumerate(NAMES):
        commands.append(["-n", name, "addr", "add", f"10.99.0.{i + 1}/24", "dev", f"llavat{i}"])
        commands += [["-n", name, "link", "set", device, "up"] for device in (f"llavat{i}", "lo")]
    try:
        for command in commands:
            try:
                done = subprocess.run(["ip", *command], capture_output=True, text=True, check=False)
            except FileNotFoundError:
                pytest.skip("the ip command is not installed")
            if done.returncode:
                pytest.skip(f"network namespaces are not allowed here: {done.stderr.strip()}")
        yield NAMES
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.long
def test_two_nodes_train_as_one(assets, hosts, tmp_path):
    def start(node: int) -> subprocess.Popen[str]:
        variables = tiny(
            assets, tmp_path / "two", **SETTINGS, BATCH_SIZE="1", NNODES="2", NODE_RANK=str(node),
            MASTER_ADDR="10.99.0.1", GLOO_SOCKET_IFNAME=f"llavat{node}", TP_SOCKET_IFNAME=f"llavat{node}",
        )  # fmt: skip
        with (tmp_path / f"node{node}.log").open("w") as log:
            return subprocess.Popen(["ip", "netns", "exec", hosts[node], "bash", str(SCRIPT), *MORE], env=variables,
                                    stdout=log, stderr=log, text=True, start_new_session=True)  # fmt: skip

    nodes = [start(0), start(1)]
    try:
        for i, node in enumerate(nodes):
            assert node.wait(timeout=600) == 0, (tmp_path / f"node{i}.log").read_text()[-3000:]
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
    # Of the model that the first node made.
    (made,) = (tmp_path / "two" / "output").glob("*_gpt2_*")
    variables = tiny(assets, tmp_path / "one", **SETTINGS | {"MODEL_PATH": str(made)}, BATCH_SIZE="2")
    one = subprocess.run(["bash", SCRIPT, *MORE], env=variables, capture_output=True, text=True, check=False)
    assert one.returncode == 0, one.stderr[-3000:]

    two_nodes, one_process = (losses(tmp_path / name / "output" / "video_exp2_seed0") for name in ("two", "one"))
    assert len(two_nodes) == 6 and two_nodes == pytest.approx(one_process, abs=1e-4)
    # The second node only trains: the model is made, and captions scored, by the first.
    words = (tmp_path / "node1.log").read_text()
    assert "captions" not in words and "_gpt2_1x32" not in words.replace(str(made), "")
