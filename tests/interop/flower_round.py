"""Rounds of Flower's on this machine: a message of SIZE bytes to each of CLIENTS, one of as many bytes back from each.

    python3 tests/interop/flower_round.py [--rounds 5] [--impatient]

prints the seconds of every round as JSON. Needs the package `flwr` (measured with 1.41) and numpy in the Python that runs it.
With --impatient no sleep of any of Flower's processes is longer than 200 ms: what is left of a round without its polling.
(Shorter ones cost more processor time than they spare.)
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

CLIENTS = 8
SIZE = 10_000_000
BINARIES = pathlib.Path(sys.executable).parent

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "round"
version = "1.0.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "round.server:app"
clientapp = "round.client:app"

[tool.flwr.app.config]
rounds = 5
"""

SERVER = f"""
import json
import time

import numpy
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(list(grid.get_node_ids())) < {CLIENTS}:
        time.sleep(0.1)
    model = numpy.random.default_rng(1).random({SIZE} // 4, dtype=numpy.float32)
    seconds = []
    for _ in range(int(context.run_config["rounds"]) + 1):
        began = time.monotonic()
        content = RecordDict({{"model": ArrayRecord([model])}})
        messages = [Message(content=content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages))
        assert len(replies) == {CLIENTS} and not any(reply.has_error() for reply in replies), replies
        models = [reply.content["model"].to_numpy_ndarrays()[0] for reply in replies]
        model = sum(models) / numpy.float32(len(models))
        seconds.append(time.monotonic() - began)
    # The first one starts the clients' processes.
    print("ROUNDS " + json.dumps(seconds[1:]), flush=True)
"""

CLIENT = """
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    model = message.content["model"].to_numpy_ndarrays()[0]
    return Message(content=RecordDict({"model": ArrayRecord([model + 1])}), reply_to=message)
"""

IMPATIENT = """
import time

sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.2))
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    sys.exit(f"nobody listens on port {port}")


def end(mark: str) -> None:
    """Kills every process that has this in its environment: Flower's start others in groups of their own."""
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue  # It has ended, or is not ours.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--impatient", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        package = directory / "app" / "round"
        package.mkdir(parents=True)
        (directory / "app" / "pyproject.toml").write_text(PROJECT)
        for file, text in [("__init__.py", ""), ("server.py", SERVER), ("client.py", CLIENT)]:
            (package / file).write_text(text)
        path = f"{BINARIES}:{os.environ['PATH']}"
        environment = {**os.environ, "FLWR_HOME": str(directory / "home"), "FLWR_TELEMETRY_ENABLED": "0", "PATH": path}
        if arguments.impatient:
            (directory / "patch").mkdir()
            (directory / "patch" / "sitecustomize.py").write_text(IMPATIENT)
            environment["PYTHONPATH"] = str(directory / "patch")
        port = free_port()
        (directory / "home").mkdir()
        config = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        (directory / "home" / "config.toml").write_text(config)
        log = open(directory / "log", "w+")
        started = []

        def start(program: str, *options: str) -> None:
            command = [BINARIES / program, "--insecure", *options]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=directory))

        try:
            start("flower-superlink", "--port", str(port), "--disable-runtime-dependency-installation")
            wait(port)
            for _ in range(CLIENTS):
                start("flower-supernode", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()))
            run = subprocess.run(
                [BINARIES / "flwr", "run", "app", "here", "--stream", "--run-config", f"rounds={arguments.rounds}"],
                env=environment, cwd=directory, capture_output=True, text=True, timeout=600,
            )
            log.seek(0)
            said = run.stdout + run.stderr + log.read()
            for line in said.splitlines():
                if "ROUNDS [" in line:
                    print(line[line.index("["):line.index("]") + 1])
                    return
            sys.exit(said[-8000:])
        finally:
            end(f"FLWR_HOME={directory / 'home'}")
            for process in started:
                process.wait()


if __name__ == "__main__":
    main()
