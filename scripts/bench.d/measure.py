"""Measures pushes against `nix copy`; scripts/bench calls it, with everything built.

For each set, in every round: `nix copy` of its paths into an empty directory as a binary cache compressed with zstd, and
a push of the same paths to a fresh gateway on this machine, in turns; then the same push again. What is timed are the
commands alone, from their start to their end, with warm file caches and nothing left to be written back.
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

TICKS = os.sysconf("SC_CLK_TCK")


def say(text):
    print(text, file=sys.stderr, flush=True)


def fail(text):
    say(f"error: {text}")
    sys.exit(1)


def status_kib(pid, field):
    """A field of /proc/PID/status, or 0 where the process is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def cpu_seconds(pid):
    """User and system time of a running process."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def timed(command, environment, log):
    """Runs a command; its wall time, its CPU time with that of its children, and its own peak memory."""
    os.sync()
    with open(log, "ab") as errors:
        start = time.perf_counter()
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        peak = 0
        done = threading.Event()

        def watch():
            # The kernel's own figure for a finished child starts with this process's memory, so the peak of the
            # child alone is read while it runs. It never falls: at most what came in the last instant is missed.
            nonlocal peak
            while not done.is_set():
                peak = max(peak, status_kib(child.pid, "VmHWM"))
                # often enough to see the peak, seldom enough not to take part in the measurement
                done.wait(0.02)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        done.set()
        watcher.join()
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        with open(log, "rb") as file:
            sys.stderr.buffer.write(file.read()[-4000:])
        fail(f"`{' '.join(command[:4])} …` ended with {child.returncode}; its words are above and in {log}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_kib": peak}


def nar_files(directory):
    """Bytes of the NAR files of the binary caches below a directory."""
    total = 0
    for folder, _, names in os.walk(directory):
        if os.path.basename(folder) == "nar":
            total += sum(os.stat(os.path.join(folder, name)).st_size for name in names)
    return total


class Gateway:
    """A gateway of its own for one measurement, with an enrolled submitter."""

    def __init__(self, options, place):
        self.options, self.place = options, place
        self.data = os.path.join(place, "gateway")
        self.log = os.path.join(place, "gateway.log")
        os.makedirs(os.path.join(self.data, "policies"))
        # no upstream: `nix copy` doesn't ask one either
        with open(os.path.join(self.data, "policies", "main.toml"), "w") as file:
            file.write(
                'version = 1\ncache = "main"\nclosure = "self-contained"\n'
                '[[rule]]\nname = "contents"\nmatch = { content-addressed = true }\nrequire = "content-address"\n'
                '[[rule]]\nname = "rest"\nmatch = {}\nrequire = "derivation"\n'
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [options.gateway, "serve", "--data-dir", self.data, "--listen", f"127.0.0.1:{self.port}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        for _ in range(600):
            if self.process.poll() is not None:
                fail(f"the gateway ended by itself; see {self.log}")
            if self.get("/readyz") == 200:
                break
            time.sleep(0.05)
        else:
            fail(f"the gateway isn't ready after 30 seconds; see {self.log}")
        self.environment = dict(os.environ, XDG_CONFIG_HOME=os.path.join(place, "client"))
        with open(self.log, "ab") as log:
            invite = subprocess.run(
                [options.gateway, "invite", "bench", "--data-dir", self.data],
                check=True, stdout=subprocess.PIPE, stderr=log, text=True,
            )
            subprocess.run(
                [options.client, "join", self.url, "--invite", invite.stdout.strip()],
                check=True, env=self.environment, stdout=log, stderr=log,
            )

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def push(self, root):
        before = cpu_seconds(self.process.pid)
        command = [self.options.client, "push", "--wait", "--json", root]
        result = timed(command, self.environment, os.path.join(self.place, "push.log"))
        result["gateway_cpu"] = cpu_seconds(self.process.pid) - before
        result["gateway_peak_kib"] = status_kib(self.process.pid, "VmHWM")
        return result

    def require_published(self, paths):
        """A push that was accepted but holds something is no match for a copy."""

        def is_published(path):
            return self.get(f"/main/{os.path.basename(path)[:32]}.narinfo") == 200

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            lacking = [path for path, there in zip(paths, pool.map(is_published, paths)) if not there]
        if lacking:
            fail(f"{len(lacking)} of {len(paths)} paths aren't published after the push, such as {lacking[0]}; "
                 f"see {self.place}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            fail("the gateway didn't stop within 30 seconds")


def copy_round(place, root, paths):
    target = os.path.join(place, "cache")
    os.makedirs(target)
    # nothing that Nix remembers of other caches
    environment = dict(os.environ, XDG_CACHE_HOME=os.path.join(place, "nix-cache"))
    command = ["nix", "--extra-experimental-features", "nix-command", "copy", "--to",
               f"file://{target}?compression=zstd", root]
    result = timed(command, environment, os.path.join(place, "copy.log"))
    copied = sum(name.endswith(".narinfo") for name in os.listdir(target))
    if copied < len(paths):
        fail(f"nix copy wrote {copied} narinfos for {len(paths)} paths")
    result["stored"] = nar_files(target)
    return result


def push_round(options, place, root, paths):
    gateway = Gateway(options, place)
    try:
        first = gateway.push(root)
        gateway.require_published(paths)
        again = gateway.push(root)
    finally:
        gateway.stop()
    first["stored"] = nar_files(gateway.data)
    return first, again


def read_once(paths, root):
    for path in paths:
        for folder, _, names in os.walk(root + path):
            for name in names:
                file = os.path.join(folder, name)
                if not os.path.islink(file):
                    with open(file, "rb") as opened:
                        while opened.read(1 << 20):
                            pass


def nar_bytes(paths):
    answer = subprocess.run(["nix-store", "--query", "--size", *paths], check=True, stdout=subprocess.PIPE, text=True)
    return sum(map(int, answer.stdout.split()))


def middle(results, field):
    return statistics.median(result[field] for result in results)


def summary(name, paths, size, copies, pushes, agains):
    copy_wall, copy_cpu = middle(copies, "wall"), middle(copies, "cpu")
    cpu = statistics.median(push["cpu"] + push["gateway_cpu"] for push in pushes)
    return {
        "set": name,
        "paths": paths,
        "nar_bytes": size,
        "copy": {"wall": copy_wall, "cpu": copy_cpu, "peak_kib": middle(copies, "peak_kib"),
                 "stored": middle(copies, "stored")},
        "push": {
            "wall": middle(pushes, "wall"),
            "client_cpu": middle(pushes, "cpu"),
            "gateway_cpu": middle(pushes, "gateway_cpu"),
            "client_peak_kib": middle(pushes, "peak_kib"),
            "gateway_peak_kib": middle(pushes, "gateway_peak_kib"),
            "stored": middle(pushes, "stored"),
        },
        "again": {"wall": middle(agains, "wall"), "client_cpu": middle(agains, "cpu"),
                  "gateway_cpu": middle(agains, "gateway_cpu")},
        # of each round and then the middle one: what slows a whole round down doesn't show in them
        "ratios": {
            "wall": statistics.median(p["wall"] / c["wall"] for p, c in zip(pushes, copies)),
            "wall_each": [p["wall"] / c["wall"] for p, c in zip(pushes, copies)],
            "cpu": cpu / copy_cpu,
            "stored": middle(pushes, "stored") / middle(copies, "stored"),
            "again": statistics.median(a["wall"] / p["wall"] for a, p in zip(agains, pushes)),
        },
    }


def table(summaries):
    def mb(count):
        return f"{count / 1e6:,.1f} MB"

    def mib(kib):
        return f"{kib / 1024:,.0f} MiB"

    rows = [
        "| set | command | wall | CPU, client | CPU, gateway | peak, client | peak, gateway | stored | wall, ratio | CPU, ratio |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for s in summaries:
        copy, push, again, ratios = s["copy"], s["push"], s["again"], s["ratios"]
        rows.append(
            f"| {s['set']}: {s['paths']:,} paths, {mb(s['nar_bytes'])} | nix copy | {copy['wall']:.2f} s "
            f"| {copy['cpu']:.2f} s | – | {mib(copy['peak_kib'])} | – | {mb(copy['stored'])} | 1 | 1 |")
        rows.append(
            f"| | push | {push['wall']:.2f} s | {push['client_cpu']:.2f} s | {push['gateway_cpu']:.2f} s "
            f"| {mib(push['client_peak_kib'])} | {mib(push['gateway_peak_kib'])} | {mb(push['stored'])} "
            f"| **{ratios['wall']:.2f}** | {ratios['cpu']:.2f} |")
        rows.append(
            f"| | the same push again | {again['wall']:.2f} s | {again['client_cpu']:.2f} s "
            f"| {again['gateway_cpu']:.2f} s | | | | {ratios['again']:.3f} of the first | |")
    return "\n".join(rows)


def first_line(command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[0]


def machine():
    model = "unknown"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "nix": first_line(["nix", "--version"]) if shutil.which("nix") else None,
        "rust": first_line(["rustc", "--version"]),
        "load_at_start": os.getloadavg()[0],
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--client", required=True)
    parser.add_argument("--corpus", required=True, help="directory with a link to the list of paths of each set")
    parser.add_argument("--store-root", default="", help="directory above nix/store, if it isn't the root")
    parser.add_argument("--work", required=True, help="directory for what is written and removed again")
    parser.add_argument("--sets", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--json", required=True)
    options = parser.parse_args()

    report = {"machine": machine(), "rounds": options.rounds, "sets": [], "measurements": {}}
    if report["machine"]["load_at_start"] > 0.5:
        say(f"warning: the load is {report['machine']['load_at_start']:.2f}: wall times are too long, unless it is the load "
            "of what was just built")
    work = os.path.join(options.work, str(os.getpid()))
    for name in options.sets.split(","):
        link = os.readlink(os.path.join(options.corpus, name))
        with open(options.store_root + link) as file:
            paths = file.read().split()
        size = nar_bytes(paths)
        read_once(paths, options.store_root)
        copies, pushes, agains = [], [], []
        for turn in range(options.rounds):
            # who comes first changes, so that neither always meets the other's leavings
            for what in ("copy", "push") if turn % 2 == 0 else ("push", "copy"):
                # Nothing is removed before the end: for a minute after, ext4 looks past the inodes of removed files one
                # by one, and whoever makes files next pays for it.
                place = os.path.join(work, f"{name}-{turn}-{what}")
                os.makedirs(place)
                if what == "copy":
                    copies.append(copy_round(place, link, paths))
                else:
                    first, again = push_round(options, place, link, paths)
                    pushes.append(first)
                    agains.append(again)
            say(f"{name}, round {turn + 1}: nix copy {copies[-1]['wall']:.2f} s, push {pushes[-1]['wall']:.2f} s "
                f"({pushes[-1]['wall'] / copies[-1]['wall']:.2f}), again {agains[-1]['wall']:.2f} s")
        report["sets"].append(summary(name, len(paths), size, copies, pushes, agains))
        report["measurements"][name] = {"copy": copies, "push": pushes, "again": agains}
        # after every set, so that a long run that is stopped isn't lost
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    shutil.rmtree(options.work, ignore_errors=True)
    print(table(report["sets"]))


if __name__ == "__main__":
    main()
