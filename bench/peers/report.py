#!/usr/bin/env python3
"""report.py A.json B.json ...: one table, a column per file; prefers runs in which nobody else used the CPU.

other = system busy CPU - daemons - client, per second of wall time, of the workload that made the number.
A value counts as clean when other < --other (0.15 CPU).  Printed: median of the clean runs and how many of how many
runs were clean; with no clean run the best single value, marked '~'.  *.json.part files (a list of runs) work too.
"""
import argparse, json, statistics

SUF = ("_ops", "_iops", "_p99_us", "_flush_s", "_sustained_iops", "_p50_ms", "_p99_ms", "_max_ms")
PER = {"tar_x_files_per_s": "tar_x_s", "cp_out_files_per_s": "cp_out_s", "rm_rf_files_per_s": "rm_rf_s",
       "seq_write_later_fsync_s": "seq_write_MBps"}
LOW = ("_s", "_ms", "_us")


def cpukey(k, cpu):
    if k in PER:
        return PER[k]
    if k in cpu:
        return k
    for s in SUF:
        if k.endswith(s) and k[:-len(s)] in cpu:
            return k[:-len(s)]
    return None


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("files", nargs="+")
    ap.add_argument("--other", type=float, default=0.15)
    ap.add_argument("--cpu", action="store_true", help="table of daemon CPU seconds instead")
    a = ap.parse_args()
    cols, keys = [], []
    for f in a.files:
        d = json.load(open(f))
        runs = d if isinstance(d, list) else d["runs"]
        col = {}
        names = []
        for r in runs:
            names += [k for k in (r["cpu"] if a.cpu else r["results"]) if k not in names]
        for k in names:
            clean, alls = [], []
            for r in runs:
                ck = k if a.cpu else cpukey(k, r["cpu"])
                if k not in (r["cpu"] if a.cpu else r["results"]):
                    continue
                c = r["cpu"].get(ck)
                v = c["daemons_s"] if a.cpu else r["results"][k]
                alls.append(v)
                if c is None or (c["system_busy_s"] - c["daemons_s"] - c["client_s"]) < a.other * c["wall_s"] + 0.1:
                    clean.append(v)
            if clean:
                col[k] = f"{statistics.median(clean):.2f} ({len(clean)}/{len(alls)})"
            elif alls:
                low = any(k.endswith(s) for s in LOW) and not k.endswith("per_s")
                col[k] = f"~{(min if low else max)(alls):.2f} (0/{len(alls)})"
        keys += [k for k in names if k not in keys]
        cols.append(col)
    names = [f.split("/")[-1].replace(".json", "").replace(".part", "") for f in a.files]
    print("| " + " | ".join(["measure"] + names) + " |")
    print("|" + "---|" * (len(names) + 1))
    for k in keys:
        print("| " + " | ".join([k] + [c.get(k, "-") for c in cols]) + " |")


if __name__ == "__main__":
    main()
