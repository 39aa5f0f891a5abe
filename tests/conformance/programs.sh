#!/bin/sh
# Real programs on a mounted directory, each with its own check of what it wrote.
#
# usage: programs.sh DIRECTORY [PROGRAM...]     (all: git sqlite postgres c rust rsync tar)
# needs: git, sqlite3, postgresql (server and pgbench), gcc, make, cargo, rsync, tar; root for postgres, which will
#        not run as root and is started as the user `postgres`.
set -eu

[ $# -ge 1 ] || { sed -n '4,6p' "$0"; exit 2; }
root=$1
shift
[ $# -gt 0 ] || set -- git sqlite postgres c rust rsync tar
work=$root/programs.$$
local=$(mktemp -d)
stop=:
mkdir -p "$work"
trap 'eval "$stop"; rm -rf "$work" "$local"' EXIT
trap 'exit 1' INT TERM

fail() { echo "FAILED: $*" >&2; exit 1; }
need() { command -v "$1" >/dev/null || fail "$1 is not installed"; }

# A tree of real sources with names, sizes and modes as they come: the toolchain's own.
source_tree() {
    tree=$(rustc --print sysroot)/lib/rustlib
    [ -d "$tree/src" ] && tree=$tree/src
    (cd "$tree" && find . -type f -size -256k | head -n "$1" | sort | tar cf - --no-recursion -T -)
}

git_() {
    need git
    git init -q -b main "$work/origin"
    (
        cd "$work/origin"
        git config user.name test && git config user.email test@example.org
        source_tree 1500 | tar xf -
        git add . && git commit -q -m first
        for n in 1 2 3 4 5; do
            find . -name .git -prune -o -type f -print | sed -n "${n}~50p" | while read -r file; do
                echo "line $n" >> "$file"
            done
            git commit -q -a -m "change $n"
        done
        git checkout -q -b side HEAD~2 && echo side > side && git add side && git commit -q -m side
        git checkout -q main && git merge -q -m merge side
        git gc -q && git fsck --full --strict
        [ -z "$(git status --porcelain)" ]
    )
    git clone -q "$work/origin" "$work/clone"
    git -C "$work/clone" fsck --full --strict
    diff -r --exclude=.git "$work/origin" "$work/clone"
    git clone -q --no-local "$work/origin" "$local/clone"
    diff -r --exclude=.git "$local/clone" "$work/clone"
}

sqlite_() {
    need sqlite3
    for mode in delete truncate persist wal; do
        base=$work/$mode.db
        sqlite3 "$base" "pragma journal_mode=$mode; create table t(id integer primary key, who int, text);" >/dev/null
        # Four writers at once: their locks are what keeps them apart.
        for who in 1 2 3 4; do
            for n in $(seq 25); do
                echo "pragma busy_timeout=60000; begin immediate;
                      insert into t(who, text) select $who, hex(randomblob(200)) from generate_series(1, 20);
                      commit;"
            done | sqlite3 "$base" >/dev/null &
        done
        wait
        sqlite3 "$base" "delete from t where id % 3 = 0; vacuum;"
        [ "$(sqlite3 "$base" 'pragma integrity_check')" = ok ] || fail "sqlite, $mode: integrity_check"
        [ "$(sqlite3 "$base" 'select count(distinct who) from t')" = 4 ] || fail "sqlite, $mode: a writer is missing"
        [ "$(sqlite3 "$base" 'select count(*) from t')" = 1334 ] || fail "sqlite, $mode: rows are missing"
    done
}

postgres_() {
    need setpriv
    bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
    [ -x "$bin/initdb" ] || fail "the PostgreSQL server is not installed"
    mkdir "$work/pg" "$local/run" && chown postgres "$work/pg" "$local/run" && chmod 755 "$local" "$work"
    as() { (cd / && setpriv --reuid=postgres --regid=postgres --init-groups env PGHOST="$local/run" "$@"); }
    as "$bin/initdb" -D "$work/pg" --data-checksums -A trust >/dev/null
    start() { as "$bin/pg_ctl" -D "$work/pg" -w -t 120 -l "$work/pg/log" -o "-c listen_addresses= -k $local/run" start >/dev/null; }
    stop="as $bin/pg_ctl -D $work/pg -m immediate stop >/dev/null 2>&1 || true"
    start
    as "$bin/createdb" bench
    as "$bin/pgbench" -q -i -s 5 bench 2>/dev/null
    as "$bin/pgbench" -c 4 -j 2 -T "${PGBENCH_SECONDS:-15}" bench >"$local/pgbench" 2>&1
    grep -E 'tps|latency average' "$local/pgbench"
    # Killed in the middle of a run, and recovered from its log: what was committed adds up.
    # -n: pgbench would empty the history first.
    as "$bin/pgbench" -n -c 4 -j 2 -T 60 bench >/dev/null 2>&1 &
    bench=$!
    sleep 3
    kill -9 "$(head -n 1 "$work/pg/postmaster.pid")"
    wait $bench || true
    # It refuses to start while a process of the killed one still lives.
    tries=0
    until start; do
        tries=$((tries + 1))
        [ $tries -lt 30 ] || { tail -n 20 "$work/pg/log" >&2; fail "postgres: does not start after a kill"; }
        sleep 1
    done
    sums=$(as psql -At bench -c "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
        and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)")
    [ "$sums" = t ] || fail "postgres: balances do not add up after recovery"
    as "$bin/pg_ctl" -D "$work/pg" -w -m fast stop >/dev/null
    stop=:
    as "$bin/pg_checksums" --check -D "$work/pg" | grep -E 'Bad checksums'
}

c_() {
    need make
    need gcc
    mkdir "$work/c"
    (
        cd "$work/c"
        printf 'all: sum\nsum: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\tgcc -o $@ $^\n%%.o: %%.c all.h\n\tgcc -O1 -c -o $@ $<\n' > Makefile
        for n in $(seq 60); do
            printf '#include <stdio.h>\n#include <stdlib.h>\n#include "all.h"\nint f%d(void) { return %d; }\n' "$n" "$n" > "f$n.c"
            echo "int f$n(void);"
        done > all.h
        { echo '#include <stdio.h>'; echo '#include "all.h"'; echo 'int main(void) { int s = 0;'
          for n in $(seq 60); do echo "s += f$n();"; done; printf '%s\n' 'printf("%d\n", s); return 0; }'; } > main.c
        make -s -j 4
        [ "$(./sum)" = 1830 ]
        make -q || fail "c: make thinks that something is out of date"
        touch f7.c && make | grep -q 'f7.o' || fail "c: make did not see a newer file"
    )
}

rust_() {
    need cargo
    mkdir -p "$work/rust/src"
    (
        cd "$work/rust"
        printf '[package]\nname = "built"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n' > Cargo.toml
        for n in $(seq 40); do
            echo "pub fn f() -> u64 { (0..$n).map(|n: u64| n * n).sum() }" > "src/m$n.rs"
            echo "mod m$n;"
        done > src/main.rs
        { echo 'fn main() { let mut s = 0;'; for n in $(seq 40); do echo "s += m$n::f();"; done; printf '%s\n' 'println!("{s}"); }'; } >> src/main.rs
        CARGO_TARGET_DIR=target cargo -q build --offline
        first=$(./target/debug/built)
        echo 'pub fn f() -> u64 { 1 }' > src/m1.rs
        CARGO_TARGET_DIR=target cargo -q build --offline
        [ "$(./target/debug/built)" = $((first + 1)) ] || fail "rust: the change was not built"
    )
}

rsync_() {
    need rsync
    mkdir "$local/tree" && source_tree 2000 | tar xf - -C "$local/tree"
    ln -s nowhere "$local/tree/link" && ln "$local/tree/link" "$local/tree/link2" && chmod 600 "$local/tree/link2" 2>/dev/null || true
    rsync -aH "$local/tree/" "$work/rsync/"
    [ -z "$(rsync -aHn --checksum --delete --itemize-changes "$local/tree/" "$work/rsync/")" ] || fail "rsync: trees differ"
    find "$local/tree" -type f | sed -n '1~20p' | while read -r file; do echo more >> "$file"; done
    rsync -aH --delete --inplace "$local/tree/" "$work/rsync/"
    [ -z "$(rsync -aHn --checksum --delete --itemize-changes "$local/tree/" "$work/rsync/")" ] || fail "rsync: trees differ after changes"
    rsync -a --checksum "$work/rsync/" "$local/back/"
    diff -r --no-dereference "$local/tree" "$local/back"
}

tar_() {
    mkdir "$local/tar" && source_tree 3000 > "$local/tree.tar" && tar xf "$local/tree.tar" -C "$local/tar"
    mkdir "$work/tar" && tar xf "$local/tree.tar" -C "$work/tar"
    diff -r "$local/tar" "$work/tar"
    tar df "$local/tree.tar" -C "$work/tar"
    cp -a "$work/tar" "$work/copy" && diff -r "$local/tar" "$work/copy"
    rm -rf "$work/tar" "$work/copy"
    [ ! -e "$work/tar" ] && [ ! -e "$work/copy" ]
}

for program in "$@"; do
    began=$(date +%s)
    "${program}_"
    echo "ok: $program ($(($(date +%s) - began)) s)"
done
