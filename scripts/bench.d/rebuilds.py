"""Measures rebuilds against plain Nix: what one adds to building a trivial derivation, and how fast verifiers drain many;
scripts/bench calls it."""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import time

from measure import fail, machine, say

HERE = os.path.dirname(os.path.abspath(__file__))
ADDED, RATIO = 0.5, 1.3
POLICY = """version = 1
cache = "main"

[[rule]]
name = "sources"
match = { content-addressed = true }
require = "content-address"

[[rule]]
name = "rebuilt"
match = {}
require = { all = ["derivation", { rebuilds = 1 }] }
"""


class Place:
    """A gateway that has everything rebuilt, a submitter, and verifiers."""

    def __init__(self, options, place):
        self.options, self.place, self.running = options, place, []
        self.data = os.path.join(place, "gateway")
        os.makedirs(os.path.join(self.data, "policies"))
        with open(os.path.join(self.data, "policies", "main.toml"), "w") as file:
            file.write(POLICY)
        self.log = open(os.path.join(place, "log"), "ab")
        gateway = subprocess.Popen([options.gateway, "serve", "--data-dir", self.data, "--listen", "127.0.0.1:0"],
                                   stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.running.append(gateway)
        # `extra-substituters = http://HOST:PORT/main`
        self.cache = gateway.stdout.readline().split("=")[1].strip()
        self.url = self.cache.rsplit("/", 1)[0]
        gateway.stdout.readline()
        # the store that submits, and in which plain Nix builds
        self.environment = dict(os.environ, XDG_CONFIG_HOME=os.path.join(place, "client"), NIX_REMOTE="",
                                NIX_CONFIG="build-users-group =\nsandbox = true\nsandbox-paths =\nsubstituters =\n"
                                           "experimental-features = nix-command\nfsync-metadata = false\n")
        self.run([options.client, "join", self.url, "--invite", self.invite("alice", "alice"), "--name", "alice-1"])

    def invite(self, name, owner, role="submitter"):
        done = subprocess.run([self.options.gateway, "invite", name, "--role", role, "--owner", owner,
                               "--data-dir", self.data], check=True, stdout=subprocess.PIPE, stderr=self.log, text=True)
        return done.stdout.strip()

    def run(self, command, store=None, **more):
        environment = dict(self.environment, **({"NIX_REMOTE": store} if store else {}))
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=self.log, text=True, **more)
        if done.returncode:
            fail(f"{' '.join(command[:3])} ended with {done.returncode}; see {self.log.name}")
        return done.stdout

    def verifier(self, number):
        work = os.path.join(self.place, f"verifier-{number}")
        if not os.path.exists(work):
            code = self.invite(f"verifier-{number}", f"operator-{number}", "verifier")
            self.run([self.options.verifier, "join", self.url, "--invite", code, "--work-dir", work])
        child = subprocess.Popen([self.options.verifier, "run", "--work-dir", work], stdout=self.log, stderr=self.log,
                                 env=dict(self.environment, NIX_CONFIG=""))
        self.running.append(child)
        return child

    def published(self):
        folder = os.path.join(self.data, "blobs", "main")
        return sum(name.endswith(".narinfo") for name in os.listdir(folder)) if os.path.isdir(folder) else 0

    def wait_published(self, count, patience=900):
        end = time.monotonic() + patience
        while self.published() < count:
            if time.monotonic() > end:
                fail(f"{self.published()} of {count} paths are published; see {self.log.name}")
            time.sleep(0.005)

    def stop(self):
        for child in reversed(self.running):
            child.send_signal(signal.SIGTERM)
        for child in reversed(self.running):
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()


def derivations(place, store, stamp, count):
    """Derivations in a store, with the toolset built: its path, and theirs in order."""
    common = ["--argstr", "stamp", stamp, "--arg", "count", str(count), "--arg", "busybox", place.busybox]
    file = os.path.join(HERE, "trivial.nix")
    tools = place.run(["nix-build", file, "-A", "tools", "--no-out-link", "--quiet", *common], store).strip()
    return tools, place.run(["nix-instantiate", file, "-A", "all", "--quiet", *common], store).split()


def once(options, number, count):
    """One round: (seconds of plain Nix for one, seconds of its rebuild), (the same for all)."""
    place = Place(options, os.path.join(options.work, f"rebuilds-{os.getpid()}-{number}"))
    place.busybox = options.busybox
    try:
        store = os.path.join(place.place, "store")
        stamp = f"{time.time_ns()}"
        tools, all_of = derivations(place, store, stamp, count)
        first = place.verifier(0)
        place.run([options.client, "push", "--wait", tools], store)
        before = place.published()
        # one after the other: plain, then what it takes from the announcement until the rebuilt path is published
        plain, rebuilt = [], []
        ones, rest = all_of[:20], all_of[20:]
        for derivation in ones:
            begun = time.monotonic()
            path = place.run(["nix-store", "--realise", derivation, "--quiet"], store).strip()
            plain.append(time.monotonic() - begun)
            begun = time.monotonic()
            place.run([options.client, "push", path], store)
            before += 1
            place.wait_published(before)
            rebuilt.append(time.monotonic() - begun)
        first.send_signal(signal.SIGTERM)
        first.wait()
        begun = time.monotonic()
        paths = place.run(["nix-store", "--realise", *rest, "--quiet", "--max-jobs", "4"], store).split()
        together = time.monotonic() - begun
        place.run([options.client, "push", *paths], store)
        begun = time.monotonic()
        for verifier in range(4):
            place.verifier(verifier)
        place.wait_published(before + len(rest))
        drained = time.monotonic() - begun
    finally:
        place.stop()
    subprocess.run(["chmod", "-R", "u+w", place.place], check=False)
    shutil.rmtree(place.place)
    return statistics.median(plain), statistics.median(rebuilt), together, drained


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--client", required=True)
    parser.add_argument("--verifier", required=True)
    parser.add_argument("--busybox", required=True, help="the directory that tests/toolset/make makes")
    parser.add_argument("--work", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=420)
    parser.add_argument("--keep", action="store_true", help="the JSON file has other measurements in it")
    options = parser.parse_args()
    report = {"machine": machine()}
    if options.keep:
        with open(options.json) as file:
            report = json.load(file)
    os.makedirs(options.work, exist_ok=True)
    rounds = []
    for number in range(options.rounds):
        plain, rebuilt, together, drained = once(options, number, options.count)
        say(f"one: {plain:.3f} s plain, {rebuilt:.3f} s pushed and rebuilt; {options.count - 20}: {together:.1f} s plain, {drained:.1f} s by 4 verifiers")
        rounds.append({"plain": plain, "rebuilt": rebuilt, "together": together, "drained": drained})
    added = statistics.median(one["rebuilt"] - one["plain"] for one in rounds)
    ratio = statistics.median(one["drained"] / one["together"] for one in rounds)
    report["rebuilds"] = {"rounds": rounds, "added_seconds": added, "ratio": ratio,
                          "goals": {"added_seconds": ADDED, "ratio": RATIO}}
    with open(options.json, "w") as file:
        json.dump(report, file, indent=1)
    print("| | | goal |\n|---|--:|--:|")
    print(f"| a push with its rebuild, beyond `nix-store --realise` of the same trivial derivation | {added:.2f} s | {ADDED} s |")
    print(f"| {options.count - 20} trivial jobs by 4 verifiers ÷ plain Nix with 4 jobs | {ratio:.2f} | {RATIO} |")


if __name__ == "__main__":
    main()
