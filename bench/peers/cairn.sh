#!/bin/bash
# A CairnFS cluster on this machine, three namenodes and four datanodes with fsync on, mounted once.
#   cairn.sh start|mount|umount|stop
# Env: CAIRN (the binary), BASE (/tmp/peers-cairn)  MNT ($BASE/mnt)
set -u
BASE=${BASE:-/tmp/peers-cairn}; MNT=${MNT:-$BASE/mnt}
CAIRN=${CAIRN:-$(dirname "$0")/../../target/release/cairn}
export CAIRN_CONFIG=$BASE/cluster/cairn.toml
case $1 in
  start) mkdir -p "$MNT"; "$CAIRN" cluster up --dir "$BASE/cluster" > /dev/null ;;
  mount) "$CAIRN" mount "$MNT" -d --log-file "$BASE/mount.log" ;;
  umount) umount "$MNT" ;;
  stop) mountpoint -q "$MNT" && umount "$MNT"; "$CAIRN" cluster rm --dir "$BASE/cluster" > /dev/null ;;
esac
