#!/usr/bin/env python3
"""Runs the Eclipse Paho interoperability suite against the app topics of one pool.

    git clone https://github.com/eclipse/paho.mqtt.testing
    tests/interop/paho_suite.py --suite paho.mqtt.testing/interoperability --millpond target/debug/millpond

Each test of client_test.py (MQTT 3.1.1) and client_test5.py (MQTT 5) runs in a process of its own, as the suite itself is
run. Between the suite and the server this file does four things, in the suite's client and nowhere else:

- it signs in with a user name and a token;
- it puts `app/{pool}/` before every topic and every filter, the `#` of the suite's clean-up included, and takes it off what
  arrives. In `$share/{group}/{filter}` it stands before the filter. A topic that begins with `$` still does afterwards:
  `$TopicA` becomes `$app/{pool}/TopicA`, for that is what such a topic is about;
- it leaves `test/nosubscribe` as it is: a topic that nobody may subscribe to, as the suite wants one;
- over MQTT 5 it asks for no problem information, because the suite's client takes a PUBACK with a reason string for broken.

With --plain nothing of this is done: so a broker without credentials is the reference. It prints one line a test and the
counts; its exit code is 1 if a test failed that --expect does not name, if there is none to run, or without the suite.
"""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
import unittest

VERSIONS = {"3": ("client_test", "mqtt.clients.V311"), "5": ("client_test5", "mqtt.clients.V5")}
# One process a test, and none for ever.
LIMIT_S = 180


def renamed(topic, prefix, kept):
    """A topic or filter of the suite, as it stands on the server."""
    if topic == "" or topic in kept:
        return topic
    if topic.startswith("$share/"):
        share, group, rest = topic.split("/", 2)
        return "/".join([share, group, prefix + rest])
    return "$" + prefix + topic[1:] if topic.startswith("$") else prefix + topic


def adapt(client, prefix, kept, user, token, version):
    """Makes the suite's client one of the pool."""
    original = {name: getattr(client, name) for name in ["connect", "subscribe", "unsubscribe", "publish", "registerCallback"]}

    def topic_of(topic):
        return renamed(topic, prefix, kept)

    def connect(self, *args, **named):
        named.setdefault("username", user)
        named.setdefault("password", token.encode())
        if version == "5":
            formats = importlib.import_module("mqtt.formats.MQTTV5")
            said = named.get("properties") or formats.Properties(formats.PacketTypes.CONNECT)
            if not hasattr(said, "RequestProblemInformation"):
                said.RequestProblemInformation = 0
            named["properties"] = said
        if named.get("willTopic"):
            named["willTopic"] = topic_of(named["willTopic"])
        return original["connect"](self, *args, **named)

    def subscribe(self, topics, *args, **named):
        return original["subscribe"](self, [topic_of(topic) for topic in topics], *args, **named)

    def unsubscribe(self, topics):
        return original["unsubscribe"](self, [topic_of(topic) for topic in topics])

    def publish(self, topic, *args, **named):
        return original["publish"](self, topic_of(topic), *args, **named)

    def register(self, callback):
        wrap(callback)
        return original["registerCallback"](self, callback)

    def wrap(callback):
        arrived = callback.publishArrived

        def publish_arrived(topic, *args, **named):
            return arrived(topic[len(prefix):] if topic.startswith(prefix) else topic, *args, **named)

        callback.publishArrived = publish_arrived

    for name, method in {
        "connect": connect,
        "subscribe": subscribe,
        "unsubscribe": unsubscribe,
        "publish": publish,
        "registerCallback": register,
    }.items():
        setattr(client, name, method)


def one(options, test):
    """Runs one test in this process."""
    version, name = test.split(".")
    module_name, client_name = VERSIONS[version]
    sys.path.insert(0, options.suite)
    module = importlib.import_module(module_name)
    client = importlib.import_module(client_name).Client
    kept = ("test/nosubscribe",)
    if not options.plain:
        prefix = f"app/{options.pool}/"
        # The suite's callbacks forget everything by calling their own __init__, which keeps our wrapper.
        adapt(client, prefix, kept, f"{options.pool}/{options.member}", options.token, version)
    module.host, module.port = options.host, options.port
    module.topic_prefix = "client_test5/"
    module.topics = ("TopicA", "TopicA/B", "Topic/C", "TopicA/C", "/TopicA")
    module.wildtopics = ("TopicA/+", "+/C", "#", "/#", "/+", "+/+", "TopicA/#")
    module.nosubscribe_topics = kept
    suite = unittest.TestSuite([module.Test(name)])
    ok = unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful()
    sys.stdout.flush()
    # Threads of the suite may never end.
    os._exit(0 if ok else 1)


def names(suite, version):
    """The tests of the suite's file, without importing it."""
    with open(os.path.join(suite, VERSIONS[version][0] + ".py"), encoding="utf-8") as file:
        return re.findall(r"^\s+def (test\w+)\(self\)", file.read(), re.MULTILINE)


def start(millpond):
    """A server that opens app topics, in a temporary directory; its process and what it printed."""
    opened = {"MILLPOND__MQTT__APP_TOPICS": '["app/+/#"]', "MILLPOND__MQTT__KEEP_ALIVE_MAX_S": "60"}
    server = subprocess.Popen(
        [millpond, "dev", "--ports", "auto"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **opened},
    )
    variables = {}
    for line in server.stdout:
        words = shlex.split(line.removeprefix("export "))
        for word in words:
            key, _, value = word.partition("=")
            variables[key] = value
        if "MILLPOND_LISTENER_TOKEN" in variables:
            return server, variables
    raise SystemExit("the server ended before it was ready")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default=os.environ.get("PAHO_SUITE"), help="the suite's folder interoperability (PAHO_SUITE)")
    parser.add_argument("--millpond", help="start this program, as `dev`; otherwise one that runs is used")
    parser.add_argument("--host", default=os.environ.get("MILLPOND_MQTT_HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("MILLPOND_MQTT_PORT", "1883")))
    parser.add_argument("--pool", default=os.environ.get("MILLPOND_POOL", "demo"))
    parser.add_argument("--member", default="publisher")
    parser.add_argument("--token", default=os.environ.get("MILLPOND_PUBLISHER_TOKEN", ""))
    parser.add_argument("--plain", action="store_true", help="change nothing: the reference without credentials")
    parser.add_argument("--expect", action="append", default=[], metavar="V.TEST", help="a test that may fail")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("tests", nargs="*", metavar="V.TEST", help="only these, such as 5.test_basic")
    options = parser.parse_args()
    if not options.suite or not os.path.isfile(os.path.join(options.suite, "client_test5.py")):
        print("the Paho suite is not here; name its folder interoperability with --suite or PAHO_SUITE", file=sys.stderr)
        return 1
    if options.one:
        return one(options, options.one)
    server = None
    if options.millpond:
        server, found = start(options.millpond)
        options.host, options.port = found["MILLPOND_MQTT_HOST"], int(found["MILLPOND_MQTT_PORT"])
        options.pool, options.token = found["MILLPOND_POOL"], found["MILLPOND_PUBLISHER_TOKEN"]
    try:
        return run_all(options)
    finally:
        if server:
            server.terminate()
            server.wait()


def run_all(options):
    tests = options.tests or [f"{version}.{name}" for version in VERSIONS for name in names(options.suite, version)]
    if not options.tests and not all(names(options.suite, version) for version in VERSIONS):
        print(f"{options.suite} has no tests for a version of MQTT: is it another suite?", file=sys.stderr)
        return 1
    passed, failed = [], []
    for test in tests:
        command = [sys.executable, __file__, "--suite", options.suite, "--host", options.host, "--port", str(options.port)]
        command += ["--pool", options.pool, "--member", options.member, "--one", test]
        command += ["--plain"] if options.plain else []
        # Not on the command line: others can read that.
        env = {**os.environ, "MILLPOND_PUBLISHER_TOKEN": options.token}
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=env, check=False)
            ok, output = ran.returncode == 0, ran.stdout + ran.stderr
        except subprocess.TimeoutExpired as late:
            ok, output = False, f"no end within {LIMIT_S} s\n{late.stdout or b''!r}"
        (passed if ok else failed).append(test)
        print(f"{'ok  ' if ok else 'FAIL'} {test}", flush=True)
        if not ok:
            print("\n".join("     " + line for line in output.strip().splitlines()[-12:]), flush=True)
    for version in VERSIONS:
        of = [test for test in passed + failed if test.startswith(version)]
        if of:
            count = sum(test in passed for test in of)
            print(f"MQTT {'3.1.1' if version == '3' else '5'}: {count} of {len(of)} passed")
    return 1 if any(test not in options.expect for test in failed) else 0


if __name__ == "__main__":
    sys.exit(main())
