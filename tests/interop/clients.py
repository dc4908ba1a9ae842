#!/usr/bin/env python3
"""paho-mqtt over 3.1.1 and 5 on app topics: what applications do. Succeeds if all of it holds.

It asks for no topic aliases: paho-mqtt gives a message that comes by alias an empty topic.
"""

import argparse
import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

PATIENCE_S = 30


class Client:
    """One connection; whatever arrives is in `messages`."""

    def __init__(self, options, version, client_id, clean=True, expiry=0, will=None):
        self.version = version
        self.messages, self.done = queue.Queue(), queue.Queue()
        named = {"client_id": client_id, "protocol": version}
        if version == mqtt.MQTTv311:
            named["clean_session"] = clean
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, **named)
        self.client.username_pw_set(options.user, options.token)
        self.client.on_message = lambda _c, _u, message: self.messages.put(message)
        self.client.on_connect = lambda _c, _u, flags, code, _p: self.done.put((flags.session_present, code))
        self.client.on_subscribe = lambda _c, _u, _mid, codes, _p: self.done.put([code.value for code in codes])
        if will:
            self.client.will_set(*will)
        named = {}
        if version == mqtt.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = expiry
            named = {"clean_start": clean, "properties": properties}
        self.client.connect(options.host, options.port, keepalive=30, **named)
        self.client.loop_start()
        self.present, code = self.done.get(timeout=PATIENCE_S)
        assert not code.is_failure, code

    def subscribe(self, *args, **named):
        self.client.subscribe(*args, **named)
        return self.done.get(timeout=PATIENCE_S)

    def publish(self, *args, **named):
        self.client.publish(*args, **named).wait_for_publish(PATIENCE_S)

    def next(self):
        return self.messages.get(timeout=PATIENCE_S)

    def leave(self):
        self.client.disconnect()
        self.client.loop_stop()

    def vanish(self):
        self.client.loop_stop()
        self.client.socket().close()


def main():
    parser = argparse.ArgumentParser()
    for name in ["--host", "--pool", "--user", "--token"]:
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    topic = f"app/{options.pool}/"

    for version in [mqtt.MQTTv311, mqtt.MQTTv5]:
        name = f"v{version}"
        sender = Client(options, version, f"sender-{name}")
        listener = Client(options, version, f"listener-{name}")
        assert listener.subscribe(topic + "+/#", qos=2) == [2]
        for qos in range(3):
            sender.publish(topic + "x/y", f"hello {qos}", qos=qos, retain=qos == 2)
            message = listener.next()
            assert (message.payload, message.qos, message.retain) == (f"hello {qos}".encode(), qos, False)
        late = Client(options, version, f"late-{name}")
        late.subscribe(topic + "#", qos=1)
        message = late.next()
        assert (message.payload, message.qos, message.retain) == (b"hello 2", 1, True)
        sender.publish(topic + "x/y", b"", qos=1, retain=True)
        late.leave()
        listener.leave()

        # A session that is kept.
        kept = Client(options, version, f"kept-{name}", clean=False, expiry=600)
        assert not kept.present
        kept.subscribe(topic + "kept", qos=1)
        kept.leave()
        for n in range(20):
            sender.publish(topic + "kept", str(n), qos=1)
        kept = Client(options, version, f"kept-{name}", clean=False, expiry=600)
        assert kept.present
        assert [int(kept.next().payload) for _ in range(20)] == list(range(20))

        # A will of who vanishes.
        kept.subscribe(topic + "will", qos=1)
        mortal = Client(options, version, f"mortal-{name}", will=(topic + "will", f"of {name}", 1, False))
        mortal.vanish()
        assert kept.next().payload == f"of {name}".encode()
        kept.leave()
        sender.leave()

    # What only 5 has: No Local, properties, a number for the topic, a shared subscription.
    one = Client(options, mqtt.MQTTv5, "one")
    two = Client(options, mqtt.MQTTv5, "two")
    assert one.subscribe([(topic + "a", SubscribeOptions(qos=1, noLocal=True))]) == [1]
    assert two.subscribe([(topic + "a", SubscribeOptions(qos=1))]) == [1]
    said = Properties(PacketTypes.PUBLISH)
    said.UserProperty = [("k", "v"), ("k", "w")]
    said.ResponseTopic, said.CorrelationData, said.ContentType = topic + "back", b"7", "text/plain"
    for n in range(3):
        one.publish(topic + "a", str(n), qos=1, properties=said)
        message = two.next()
        assert message.topic == topic + "a" and message.payload == str(n).encode()
        got = message.properties
        assert (got.UserProperty, got.ResponseTopic, got.CorrelationData) == (said.UserProperty, topic + "back", b"7")
    for client in [one, two]:
        assert client.subscribe(f"$share/g/{topic}shared", qos=1) == [1]
    for n in range(10):
        one.publish(topic + "shared", str(n), qos=1)
    shares = [[client.next() for _ in range(5)] for client in [one, two]]
    assert sorted(int(message.payload) for share in shares for message in share) == list(range(10))
    assert one.messages.empty() and two.messages.empty()
    assert one.subscribe("#", qos=1) == [0x87] and one.subscribe("app/other/#", qos=1) == [0x87]
    one.leave()
    two.leave()
    print("all of it holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
