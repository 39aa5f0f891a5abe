#!/usr/bin/env python3
"""How soon the replicas of a killed datanode are made up for, and what a client notices meanwhile.

  repair.py [cairn|moosefs] [--gib 4] [--load]

A cluster of four datanodes gets `--gib` GiB in three replicas; then one datanode is killed with SIGKILL. Printed, as JSON:
seconds until the first replica was made, until all were, and MiB/s from the kill on; with --load, what a client reads and
writes a second, before the kill and during the repair. What is measured is the repair, not the patience: CairnFS gives a
datanode up after a second, MooseFS at once, and MooseFS's loop, delay and limits of replication are set to their best.
MooseFS's replicas are counted on its chunk servers' disks. Needs root and /dev/fuse; for MooseFS `netns.sh up` before.
"""
import argparse, collections, glob, json, os, signal, subprocess, sys, threading, time

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 1 << 20


def sh(*words, env=None, check=True):
    done = subprocess.run(words, cwd=HERE, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


class Cairn:
    base = "/tmp/peers-cairn"

    def __init__(self):
        self.mount = self.base + "/mnt"
        self.program = os.environ.get("CAIRN", HERE + "/../../target/release/cairn")
        self.env = {"CAIRN_CONFIG": self.base + "/cluster/cairn.toml"}

    def start(self):
        os.makedirs(self.mount, exist_ok=True)
        sh(self.program, "cluster", "up", "--dir", self.base + "/cluster", "--dead-after", "1")
        sh("./cairn.sh", "mount")

    def stop(self):
        sh("./cairn.sh", "stop")

    def kill(self):
        sh(self.program, "cluster", "kill", "dn1", "--dir", self.base + "/cluster")

    def look(self):
        """Chunks that lack replicas; None while they are counted."""
        said = json.loads(sh(self.program, "status", "--json", env=self.env, check=False) or "{}")
        repair = said.get("repair")
        if not repair or repair["counting"]:
            return None
        dead = sum(node["liveness"] == "dead" for node in said["datanodes"])
        return repair["under_replicated"], dead


class Moosefs:
    base = "/tmp/peers-mfs"

    def __init__(self):
        self.mount, self.killed = self.base + "/mnt", False
        self.env = {"MASTER_EXTRA": "REPLICATIONS_DELAY_INIT = 0\\nCHUNKS_LOOP_MIN_TIME = 60\\n"
                                    "CHUNKS_WRITE_REP_LIMIT = 20,20,20,20\\nCHUNKS_READ_REP_LIMIT = 40,40,40,40"}

    def start(self):
        sh("./moosefs.sh", "start", env=self.env)
        sh("./moosefs.sh", "mount", env=self.env)

    def stop(self):
        sh("./moosefs.sh", "stop", check=False)
        sh("rm", "-rf", self.base)

    def kill(self):
        pids = dict(line.split() for line in sh("./moosefs.sh", "pids").splitlines() if len(line.split()) == 2)
        os.kill(int(pids["cs1"]), signal.SIGKILL)
        self.killed = True

    def look(self):
        """A replica counts when it has the version and the length of the others."""
        copies, sizes = collections.Counter(), collections.Counter()
        for server in (2, 3, 4) if self.killed else (1, 2, 3, 4):
            for path in glob.glob(f"{self.base}/cs{server}/data/*/chunk_*.mfs"):
                try:
                    size = os.stat(path).st_size
                except FileNotFoundError:
                    continue
                name = os.path.basename(path)
                copies[name, size] += 1
                sizes[name] = max(sizes[name], size)
        chunk = lambda name: name.split("_")[1]
        best = collections.Counter()
        for (name, size), count in copies.items():
            if size == sizes[name]:
                best[chunk(name)] = max(best[chunk(name)], count)
        return sum(count < 3 for count in best.values()), int(self.killed)


class Load(threading.Thread):
    """A client that reads a file and writes another, over and over; `rate()` since it was last asked, MiB/s."""

    def __init__(self, mount, source):
        super().__init__(daemon=True)
        self.mount, self.source, self.done, self.ended = mount, source, 0, False
        self.asked = (time.monotonic(), 0)

    def run(self):
        buffer = os.urandom(MIB)
        with open(self.source, "rb", buffering=0) as read:
            while not self.ended:
                # The kernel's pages would answer the second time.
                os.posix_fadvise(read.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                read.seek(0)
                with open(self.mount + "/load", "wb", buffering=0) as write:
                    while not self.ended and (piece := read.read(MIB)):
                        write.write(buffer)
                        self.done += len(piece) + MIB

    def rate(self):
        (since, before), self.asked = self.asked, (time.monotonic(), self.done)
        return round((self.asked[1] - before) / MIB / (self.asked[0] - since), 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("system", nargs="?", choices=("cairn", "moosefs"), default="cairn")
    parser.add_argument("--gib", type=int, default=4)
    parser.add_argument("--load", action="store_true")
    args = parser.parse_args()
    system = {"cairn": Cairn, "moosefs": Moosefs}[args.system]()
    system.start()
    result = {"system": args.system, "gib": args.gib}
    try:
        block = os.urandom(MIB)
        for number in range(args.gib * 4):
            with open(f"{system.mount}/file{number}", "wb", buffering=0) as file:
                for _ in range(256):
                    file.write(block)
                os.fsync(file.fileno())
        give_up = time.monotonic() + 120
        while system.look() != (0, 0):
            if time.monotonic() > give_up:
                sys.exit(f"not whole before the kill: {system.look()}")
            time.sleep(0.5)
        load = Load(system.mount, f"{system.mount}/file0")
        if args.load:
            load.start()
            time.sleep(5)
            load.rate()
            time.sleep(10)
            result["client_mib_s_before"] = load.rate()
        killed = time.monotonic()
        system.kill()
        first, most, whole = None, 0, None
        give_up = killed + 600
        while time.monotonic() < give_up:
            now, seen = time.monotonic() - killed, system.look()
            if seen:
                lacking, dead = seen
                if lacking < most and first is None:
                    first = now
                most = max(most, lacking)
                if most and dead and lacking == 0:
                    whole = now
                    break
            time.sleep(0.1)
        if args.load:
            result["client_mib_s_during"] = load.rate()
            load.ended = True
            load.join()
        result |= {"chunks": most, "first_s": first and round(first, 2), "whole_s": whole and round(whole, 2)}
        if whole:
            result["mib_s_from_kill"] = round(most * 64 / whole, 1)
    finally:
        system.stop()
    print(json.dumps(result))


main()
