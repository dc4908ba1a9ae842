"""A member's connection: publish and wait for the acknowledgement, ask and wait for the answer. Needs paho-mqtt 2."""
import argparse
import hashlib
import json
import queue
import threading
import urllib.request
import uuid

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE = 90  # seconds, longer than any wait_s
PUBLISH_MAX = 1 << 20  # bytes; the pool's card says it too


class Refused(Exception):
    """The server's refusal: `error` is the object of docs/protocol.md with `code`, `message` and maybe `hint`."""

    def __init__(self, error):
        super().__init__(f"{error['code']}: {error['message']}")
        self.error = error


class Member:
    """Connects with MQTT 5. Messages that are no answers (receipts, the pointer) wait in the queue `messages` as (topic, payload)."""

    def __init__(self, host, port, user, token, client_id=None):
        self.pool, self.name = user.split("/")
        self.messages = queue.Queue()
        self._answers, self._acks, self._lock = {}, {}, threading.Lock()
        self._refused = None
        self._filters, self._granted = [f"mp/{self.pool}/d/{self.name}/#"], threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id or self.name, protocol=mqtt.MQTTv5)
        self.client.username_pw_set(user, token)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda *_: self._granted.set()
        self.client.on_publish = self._on_publish
        self.client.on_message = self._on_message
        self.client.connect(host, port)
        self.client.loop_start()
        self._wait_granted()

    def subscribe(self, topic):
        self._filters.append(topic)
        self._granted.clear()
        self.client.subscribe(topic, qos=1)
        self._wait_granted()

    def publish(self, topic, payload, properties=(), content_type=None):
        """QoS 1 to `mp/{pool}/c/{member}/{topic}`; returns when it is acknowledged, raises if it was refused for good.

        After a lost connection paho connects again and sends what is not acknowledged: twice is once.
        """
        self._publish(topic, payload, properties, content_type)

    def ask(self, op, **ask):
        """The answer to an op as a dict; ops that change state get an `id` of their own unless you bring one."""
        ask.setdefault("id", uuid.uuid4().hex)
        answer = self._answers[ask["id"]] = queue.Queue(1)
        beside = Properties(PacketTypes.PUBLISH)
        beside.ResponseTopic = f"mp/{self.pool}/d/{self.name}/answer/{op}"
        beside.CorrelationData = ask["id"].encode()
        self._publish(f"ask/{op}", json.dumps(ask), beside=beside)
        answer = json.loads(answer.get(timeout=PATIENCE))
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()

    def _publish(self, topic, payload, properties=(), content_type=None, beside=None):
        beside = beside or Properties(PacketTypes.PUBLISH)
        if properties:
            beside.UserProperty = list(properties)
        if content_type:
            beside.ContentType = content_type
        with self._lock:  # the acknowledgement must not come before it is known what it is for
            info = self.client.publish(f"mp/{self.pool}/c/{self.name}/{topic}", payload, qos=1, properties=beside)
            ack = self._acks[info.mid] = queue.Queue(1)
        reason = ack.get(timeout=PATIENCE)
        if reason.is_failure:
            raise RuntimeError(f"{topic} was refused: {reason}")

    def _on_connect(self, client, _userdata, _flags, reason, _properties):
        if reason.is_failure:
            self._refused = reason
            self._granted.set()
        for topic in self._filters:
            client.subscribe(topic, qos=1)

    def _on_publish(self, _client, _userdata, mid, reason, _properties):
        with self._lock:
            self._acks.pop(mid).put(reason)

    def _on_message(self, _client, _userdata, message):
        correlation = getattr(message.properties, "CorrelationData", b"").decode()
        answer = self._answers.pop(correlation, None)
        if answer:
            answer.put(message.payload)
        else:
            self.messages.put((message.topic, message.payload))

    def _wait_granted(self):
        if not self._granted.wait(PATIENCE):
            raise SystemExit("the server does not answer")
        if self._refused:
            raise SystemExit(f"the server refused the connection: {self._refused}")


def send(member, file, size, sha256, **about):
    """Sends what is too large for a PUBLISH to storage: `about` names the `upload`, or the `round` and `attempt`, and more keys of
    `put`. Who was interrupted calls it again: what is there is not sent twice. `commit` or `done` make it count."""
    about.update(size=size, sha256=sha256)
    grant = member.ask("put", **about)
    if "to" in grant:
        _put(grant["to"], file)
    if "part_size" in grant:
        # What was granted stands: an earlier call may have named another length.
        about["part_size"] = grant["part_size"]
    there = {n for first, last in grant.get("there", []) for n in range(first, last + 1)}
    for n in range(1, grant.get("part_count", 0) + 1):
        if n in there:
            continue
        file.seek((n - 1) * grant["part_size"])
        part = file.read(grant["part_size"])
        wanted = [{"n": n, "sha256": hashlib.sha256(part).hexdigest()}]
        granted = member.ask("put", parts=wanted, **about)["parts"][0]
        if "to" in granted:
            _put(granted["to"], part)


def _put(to, data):
    """Exactly these headers: they are signed."""
    request = urllib.request.Request(to["url"], data, to["headers"], method="PUT")
    with urllib.request.urlopen(request, timeout=PATIENCE):
        pass


def fetch(url, size, sha256):
    """The bytes behind a URL of Millpond, checked."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        data = response.read(size + 1)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("the file is not what was announced")
    return data


def arguments(about):
    """The options that every example has."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--user", required=True, help="POOL/MEMBER")
    parser.add_argument("--token", required=True)
    return parser


def connect(options):
    return Member(options.host, options.port, options.user, options.token)
