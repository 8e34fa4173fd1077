"""Measures public reads against nginx; scripts/bench calls it, with everything built.

Both serve the same directory, the public part of a gateway's blobs, with as many workers as there are cores, and are asked
by the same client on the same machine, over connections that stay open. In every round each is measured at each task, in
turns. The files are made here: what a gateway serves is what lies there, however it got there.
"""

import argparse
import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import time

from measure import cpu_seconds, fail, first_line, machine, say, status_kib

DIGITS = "0123456789abcdfghijklmnpqrsvwxyz"
SMALL, LARGE, LARGE_BYTES = 1000, 3, 300_000_000
#: name, what is asked for, how many at once
TASKS = [("narinfos", 64), ("small NARs", 64), ("large NARs", 4)]


def base32(digest):
    """As Nix writes hashes: digits from the last to the first."""
    number = int.from_bytes(digest, "little")
    return "".join(DIGITS[(number >> (5 * n)) & 31] for n in reversed(range((len(digest) * 8 + 4) // 5)))


def make_files(public):
    """A cache of small and large paths; the lists of what to ask for, by task."""
    noise = random.Random(1)
    os.makedirs(os.path.join(public, "nar"), exist_ok=True)
    lists = {name: [] for name, _ in TASKS}
    for n in range(SMALL + LARGE):
        size = noise.randrange(2_000, 28_000) if n < SMALL else LARGE_BYTES
        path, file = (base32(hashlib.sha256(f"{kind} {n}".encode()).digest()) for kind in ("path", "file"))
        nar, info = f"nar/{file}.nar.zst", f"{path[:32]}.narinfo"
        with open(os.path.join(public, nar), "wb") as out:
            left = size
            while left > 0:
                out.write(noise.randbytes(min(left, 1 << 20)))
                left -= 1 << 20
        references = " ".join(f"{base32(noise.randbytes(20))}-reference-{k}-1.0" for k in range(n % 5))
        with open(os.path.join(public, info), "w") as out:
            out.write(
                f"StorePath: /nix/store/{path[:32]}-package-{n}-1.0\nURL: {nar}\nCompression: zstd\n"
                f"FileHash: sha256:{file}\nFileSize: {size}\nNarHash: sha256:{path}\nNarSize: {size * 3}\n"
                f"References: {references}\nDeriver: {path[:32]}-package-{n}-1.0.drv\n"
                f"Sig: main-1:{'A' * 86}==\nSig: submitter-1:{'B' * 86}==\n")
        lists["narinfos"].append(f"/main/{info}")
        lists["small NARs" if n < SMALL else "large NARs"].append(f"/main/{nar}")
    return lists


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A process that serves, with its children."""

    def __init__(self, name, command, port, log):
        self.name, self.port = name, port
        with open(log, "ab") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        for _ in range(600):
            if self.process.poll() is not None:
                fail(f"{name} ended by itself; see {log}")
            if self.fetch("/main/nix-cache-info")[0] == 200:
                break
            time.sleep(0.05)
        else:
            fail(f"{name} isn't ready after 30 seconds; see {log}")

    def fetch(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def processes(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            return [self.process.pid, *map(int, file.read().split())]

    def cpu(self):
        return sum(map(cpu_seconds, self.processes()))

    def peak_kib(self):
        return sum(status_kib(pid, "VmHWM") for pid in self.processes())

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            fail(f"{self.name} didn't stop within 40 seconds")


def start_gateway(options, data, log):
    port = free_port()
    command = [options.gateway, "serve", "--data-dir", data, "--listen", f"127.0.0.1:{port}"]
    return Server("gateway", command, port, log)


def start_nginx(blobs, place, log):
    """As distributions configure it, less the access log: the gateway writes none either."""
    port = free_port()
    config = os.path.join(place, "nginx.conf")
    with open(config, "w") as file:
        file.write(f"""
            daemon off; pid {place}/nginx.pid; error_log stderr warn;
            worker_processes auto;
            {"user root;" if os.getuid() == 0 else ""}
            events {{ worker_connections 1024; }}
            http {{
                access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
                default_type application/octet-stream;
                types {{ text/x-nix-narinfo narinfo; text/x-nix-cache-info nix-cache-info; application/x-nix-nar nar zst; }}
                client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;
                uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
                server {{ listen 127.0.0.1:{port}; root {blobs}; location /quarantine/ {{ return 404; }} }}
            }}""")
    return Server("nginx", [shutil.which("nginx") or "/usr/sbin/nginx", "-c", config], port, log)


def ask_many(options, server, paths, connections):
    command = ["wrk", "--threads", str(min(2, connections)), "--connections", str(connections),
               "--duration", f"{options.seconds}s", "--script", os.path.join(os.path.dirname(__file__), "requests.lua"),
               f"http://127.0.0.1:{server.port}", "--", paths]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(said.strip().splitlines()[-1])
    if result["failed"]:
        fail(f"{result['failed']} of {result['requests']} requests to {server.name} failed")
    return result


def download(server, paths, clients):
    """Each client fetches every file, one after the other over one connection."""
    with open(paths) as file:
        urls = [f"http://127.0.0.1:{server.port}{line.strip()}" for line in file]
    command = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*"]
    for url in urls:
        command += ["--output", "/dev/null", url]
    start = time.perf_counter()
    running = [subprocess.Popen(command) for _ in range(clients)]
    if any([client.wait() for client in running]):
        fail(f"a download from {server.name} failed")
    return {"requests": clients * len(urls), "bytes": clients * len(urls) * LARGE_BYTES,
            "seconds": time.perf_counter() - start}


def measure(options, server, task, paths, connections):
    before = server.cpu()
    if task == "large NARs":
        result = download(server, paths, connections)
    else:
        result = ask_many(options, server, paths, connections)
    result["cpu"] = server.cpu() - before
    result["rate"] = result["requests"] / result["seconds"]
    result["cpu_us_per_request"] = result["cpu"] / result["requests"] * 1e6
    result["peak_kib"] = server.peak_kib()
    return result


def require_same(servers, lists):
    """Both must serve the same bytes, or there is nothing to compare."""
    for paths in lists.values():
        for path in (paths[0], paths[-1]):
            answers = [server.fetch(path) for server in servers]
            if answers[0][0] != 200 or answers[0] != answers[1]:
                fail(f"{servers[0].name} and {servers[1].name} serve {path} differently: {[a[0] for a in answers]}")


def summary(task, connections, results):
    def middle(who, field):
        return statistics.median(result[field] for result in results[who])

    def ratio(field):
        return [ours[field] / theirs[field] for ours, theirs in zip(results["gateway"], results["nginx"])]

    return {
        "task": task, "connections": connections,
        **{who: {field: middle(who, field) for field in ("rate", "bytes", "seconds", "cpu_us_per_request", "peak_kib")}
           for who in results},
        # of each round and then the middle one
        "ratios": {"rate": statistics.median(ratio("rate")), "rate_each": ratio("rate"),
                   "cpu": statistics.median(ratio("cpu_us_per_request")), "cpu_each": ratio("cpu_us_per_request")},
    }


def table(summaries):
    rows = ["| reads | server | requests a second | MB a second | CPU a request | peak memory | rate, ratio | CPU, ratio |",
            "|---|---|--:|--:|--:|--:|--:|--:|"]
    for s in summaries:
        for who in ("nginx", "gateway"):
            r, ours = s[who], who == "gateway"
            what = "" if ours else f"{s['task']}, {s['connections']} at once"
            ratios = (f"**{s['ratios']['rate']:.2f}**", f"{s['ratios']['cpu']:.2f}") if ours else ("1", "1")
            rows.append(
                f"| {what} | {who} | {r['rate']:,.4g} | {r['bytes'] / r['seconds'] / 1e6:,.0f} "
                f"| {r['cpu_us_per_request']:,.0f} µs | {r['peak_kib'] / 1024:,.0f} MiB | {ratios[0]} | {ratios[1]} |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--work", required=True, help="directory for what is written and removed again")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement with wrk")
    parser.add_argument("--tasks", default=",".join(name for name, _ in TASKS))
    parser.add_argument("--json", required=True, help="the other sets' measurements, where there are any, are kept")
    parser.add_argument("--keep", action="store_true", help="keep the report that is there")
    options = parser.parse_args()

    place = os.path.join(options.work, f"reads-{os.getpid()}")
    data, log = os.path.join(place, "gateway"), os.path.join(place, "log")
    public = os.path.join(data, "blobs", "main")
    os.makedirs(public)
    report = {"machine": machine(), "rounds": options.rounds}
    if options.keep:
        with open(options.json) as file:
            report = json.load(file)
    lists = make_files(public)
    for task, paths in lists.items():
        with open(os.path.join(place, task), "w") as file:
            file.write("\n".join(paths) + "\n")
    versions = {"nginx": subprocess.run([shutil.which("nginx") or "/usr/sbin/nginx", "-v"], stderr=subprocess.PIPE,
                                        text=True).stderr.strip(),
                "wrk": subprocess.run(["wrk", "-v"], stdout=subprocess.PIPE, text=True).stdout.splitlines()[0],
                "curl": first_line(["curl", "--version"])}
    say("; ".join(versions.values()))
    gateway = start_gateway(options, data, log)
    nginx = start_nginx(os.path.join(data, "blobs"), place, log)
    summaries, measurements = [], {}
    try:
        require_same((nginx, gateway), lists)
        for task, connections in TASKS:
            if task not in options.tasks.split(","):
                continue
            results = {"nginx": [], "gateway": []}
            for turn in range(options.rounds):
                for server in (nginx, gateway) if turn % 2 == 0 else (gateway, nginx):
                    results[server.name].append(
                        measure(options, server, task, os.path.join(place, task), connections))
                theirs, ours = results["nginx"][-1], results["gateway"][-1]
                say(f"{task}, round {turn + 1}: nginx {theirs['rate']:,.4g}/s, {theirs['cpu_us_per_request']:,.0f} µs each; "
                    f"gateway {ours['rate']:,.4g}/s, {ours['cpu_us_per_request']:,.0f} µs each "
                    f"({ours['rate'] / theirs['rate']:.2f})")
            summaries.append(summary(task, connections, results))
            measurements[task] = results
    finally:
        gateway.stop()
        nginx.stop()
    report["reads"] = {"versions": versions, "tasks": summaries, "measurements": measurements}
    with open(options.json, "w") as file:
        json.dump(report, file, indent=1)
    shutil.rmtree(place, ignore_errors=True)
    print(table(summaries))


if __name__ == "__main__":
    main()
