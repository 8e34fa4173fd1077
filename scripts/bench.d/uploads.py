"""Measures memory: 16 submitters send a NAR of 500 MB each to one gateway, all at once; scripts/bench calls it."""

import argparse
import json
import os
import shutil
import subprocess
import threading

from measure import Gateway, fail, machine, say, status_kib

GATEWAY_MIB, CLIENT_MIB = 96, 150


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--client", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--store-root", default="")
    parser.add_argument("--work", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--keep", action="store_true", help="the JSON file has other measurements in it")
    options = parser.parse_args()
    report = {"machine": machine()}
    if options.keep:
        with open(options.json) as file:
            report = json.load(file)
    with open(options.store_root + os.readlink(os.path.join(options.corpus, "uploads"))) as file:
        paths = file.read().split()
    place = os.path.join(options.work, f"uploads-{os.getpid()}")
    os.makedirs(place)
    gateway = Gateway(options, place)
    try:
        clients = []
        for number, path in enumerate(paths):
            environment = dict(os.environ, XDG_CONFIG_HOME=os.path.join(place, f"client-{number}"))
            invite = subprocess.run([options.gateway, "invite", f"submitter-{number}", "--data-dir", gateway.data],
                                    check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            subprocess.run([options.client, "join", gateway.url, "--invite", invite.stdout.strip(), "--name",
                            f"submitter-{number}-1"], check=True, env=environment, stdout=subprocess.DEVNULL)
            clients.append((path, environment))
        peaks, most_at_once, done = [0] * len(clients), 0, threading.Event()
        log = open(os.path.join(place, "push.log"), "ab")
        running = [subprocess.Popen([options.client, "push", "--wait", "--json", path], env=environment,
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=log) for path, environment in clients]

        def watch():
            nonlocal most_at_once
            packs = os.path.join(gateway.data, "blobs", "quarantine", "tmp")
            while not done.is_set():
                for number, child in enumerate(running):
                    peaks[number] = max(peaks[number], status_kib(child.pid, "VmHWM"))
                most_at_once = max(most_at_once, len(os.listdir(packs)))
                done.wait(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        ends = [child.wait() for child in running]
        done.set()
        watcher.join()
        if any(ends):
            fail(f"pushes ended with {ends}; see {log.name}")
        gateway.require_published(paths)
        peak = status_kib(gateway.process.pid, "VmHWM") / 1024
    finally:
        gateway.stop()
    shutil.rmtree(place)
    client = max(peaks) / 1024
    say(f"{most_at_once} uploads at once, gateway {peak:.0f} MiB, clients up to {client:.0f} MiB")
    report["uploads"] = {"uploads": len(paths), "at_once": most_at_once, "gateway_peak_mib": peak,
                         "client_peak_mib": client, "goals_mib": {"gateway": GATEWAY_MIB, "client": CLIENT_MIB}}
    with open(options.json, "w") as file:
        json.dump(report, file, indent=1)
    print("| | peak | goal |\n|---|--:|--:|")
    print(f"| gateway, {most_at_once} uploads of 500 MB at once | {peak:.0f} MiB | {GATEWAY_MIB} MiB |")
    print(f"| largest of the clients | {client:.0f} MiB | {CLIENT_MIB} MiB |")


if __name__ == "__main__":
    main()
