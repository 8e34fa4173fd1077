"""Measures the gateway's pass over a NAR against `zstd -dc FILE | sha256sum`; scripts/bench calls it, with everything built.

The pass decompresses, hashes NAR and file, checks the grammar, scans for 2,000 references and makes the listing. Compared is
CPU time, user and system: the pass runs in one thread, the pipe in two processes.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess

from measure import machine, say

LETTERS = b"0123456789abcdfghijklmnpqrsvwxyz"
MOST = 1.5


def field(text):
    return len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8)


def fields(*texts):
    return b"".join(map(field, texts))


def file_node(contents, executable=False):
    mark = fields(b"executable", b"") if executable else b""
    return fields(b"(", b"type", b"regular") + mark + fields(b"contents", contents, b")")


def entry(name, node):
    return fields(b"entry", b"(", b"name", name, b"node") + node + fields(b")")


def directory(entries):
    return fields(b"(", b"type", b"directory") + b"".join(entry(name, node) for name, node in entries) + fields(b")")


def tree(path):
    if os.path.islink(path):
        return fields(b"(", b"type", b"symlink", b"target", os.fsencode(os.readlink(path)), b")")
    if os.path.isdir(path):
        names = sorted(map(os.fsencode, os.listdir(path)))
        return directory((name, tree(os.path.join(path, os.fsdecode(name)))) for name in names)
    with open(path, "rb") as file:
        return file_node(file.read(), os.access(path, os.X_OK))


def nars(options):
    """Name, what it is, and the NAR's root."""
    with open(options.store_root + os.readlink(os.path.join(options.corpus, "medium"))) as file:
        paths = sorted(file.read().split())
    yield "programs", "the 50 medium paths in one", directory(
        (os.path.basename(path).encode(), tree(options.store_root + path)) for path in paths)
    noise = random.Random(1)
    letters = bytes(LETTERS[n % 32] for n in range(256))
    yield "letters", "one file of base 32 letters", file_node(
        b"".join(noise.randbytes(1 << 20).translate(letters) for _ in range(150)))
    yield "files", "100,000 small files", directory(
        (f"file-{n:06}".encode(), file_node(noise.randbytes(40 + n % 200).translate(letters))) for n in range(100_000))


def cpu(command):
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        raise SystemExit(f"error: `{' '.join(command)}` ended with {status}")
    child.returncode = 0
    return usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--examine", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--store-root", default="")
    parser.add_argument("--work", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--keep", action="store_true", help="the JSON file has other measurements in it")
    options = parser.parse_args()
    report = {"machine": machine(), "rounds": options.rounds}
    if options.keep:
        with open(options.json) as file:
            report = json.load(file)
    place = os.path.join(options.work, f"intake-{os.getpid()}")
    os.makedirs(place)
    rows = ["| NAR | bytes | compressed | `zstd -dc \\| sha256sum` | the pass | ratio |", "|---|--:|--:|--:|--:|--:|"]
    report["intake"] = []
    for name, what, nar in nars(options):
        plain = os.path.join(place, name)
        with open(plain, "wb") as file:
            file.write(fields(b"nix-archive-1") + nar)
            size = file.tell()
        del nar
        packed = plain + ".zst"
        subprocess.run(["zstd", "-3", "-q", plain, "-o", packed], check=True)
        pipes, passes = [], []
        for turn in range(options.rounds + 1):
            pipe = cpu(["bash", "-c", 'set -o pipefail; zstd -dcq "$0" | sha256sum', packed])
            one = cpu([options.examine, packed])
            # the first time everything is read from the disk
            if turn > 0:
                pipes.append(pipe)
                passes.append(one)
        ratio = statistics.median(ours / theirs for ours, theirs in zip(passes, pipes))
        say(f"{name}: {statistics.median(pipes):.3f} s, the pass {statistics.median(passes):.3f} s ({ratio:.2f})")
        report["intake"].append({"nar": name, "what": what, "bytes": size, "packed": os.path.getsize(packed),
                                 "pipe_cpu": pipes, "pass_cpu": passes, "ratio": ratio, "goal": MOST})
        rows.append(f"| {what} | {size / 1e6:,.1f} MB | {os.path.getsize(packed) / 1e6:,.1f} MB "
                    f"| {statistics.median(pipes):.2f} s | {statistics.median(passes):.2f} s | **{ratio:.2f}** |")
    shutil.rmtree(place)
    with open(options.json, "w") as file:
        json.dump(report, file, indent=1)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
