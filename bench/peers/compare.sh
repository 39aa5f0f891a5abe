#!/bin/bash
# The same workloads (fsbench.py) on CairnFS, MooseFS, GlusterFS and local ext4, in turn, on this machine.
#   compare.sh [OUT]          tables on stdout, all figures as JSON in OUT (./peers-results)
# Env: ROUNDS (3)  SYSTEMS (cairn moosefs gluster ext4)  ONLY (seq,rand,small,meta,tar,append)  CAIRN (the binary)
# Needs root, /dev/fuse, fio, iproute2, and for the peers the packages that moosefs.sh and gluster.sh name.
# Let nothing else run: figures are only worth comparing within one sitting.
set -u
cd "$(dirname "$0")" || exit 1
OUT=${1:-peers-results}; ROUNDS=${ROUNDS:-3}
SYSTEMS=${SYSTEMS:-cairn moosefs gluster ext4}; ONLY=${ONLY:-seq,rand,small,meta,tar,append}
export CAIRN=${CAIRN:-$PWD/../../target/release/cairn}
mkdir -p "$OUT"
case " $SYSTEMS " in *" moosefs "*|*" gluster "*) ./netns.sh up > /dev/null ;; esac

run() { # SYSTEM DIRECTORY DAEMONS ROUND
  python3 fsbench.py "$2" --label "$1" --runs 1 --only "$ONLY" --pretouch 1 --daemons "$3" \
    --json "$OUT/$1.$4.json" > "$OUT/$1.$4.txt" 2> "$OUT/$1.$4.err"
}

for round in $(seq 1 "$ROUNDS"); do
  for system in $SYSTEMS; do
    echo "round $round of $ROUNDS: $system, $(date +%T)" >&2
    case $system in
      cairn) ./cairn.sh start && ./cairn.sh mount && sleep 2
             run cairn /tmp/peers-cairn/mnt "$(basename "$CAIRN")" "$round"; ./cairn.sh stop ;;
      moosefs) ./moosefs.sh start > /dev/null 2>&1 && ./moosefs.sh mount > /dev/null 2>&1
               run moosefs /tmp/peers-mfs/mnt mfsmaster,mfschunkserver,mfsmount "$round"
               ./moosefs.sh stop > /dev/null 2>&1; rm -rf /tmp/peers-mfs ;;
      gluster) ./gluster.sh start > /dev/null && ./gluster.sh mount
               run gluster /tmp/peers-gluster/mnt glusterd,glusterfsd,glusterfs "$round"
               ./gluster.sh umount; ./gluster.sh stop > /dev/null ;;
      ext4) mkdir -p /tmp/peers-ext4; run ext4 /tmp/peers-ext4 none "$round" ;;
    esac
  done
done
python3 - "$OUT" $SYSTEMS <<'PY'
import glob, json, sys
out, systems = sys.argv[1], sys.argv[2:]
for system in systems:
    runs = [run for part in sorted(glob.glob(f"{out}/{system}.*.json")) for run in json.load(open(part))["runs"]]
    json.dump({"runs": runs}, open(f"{out}/{system}.json", "w"))
PY
files=(); for system in $SYSTEMS; do files+=("$OUT/$system.json"); done
python3 report.py "${files[@]}"
echo
python3 report.py --cpu "${files[@]}"
