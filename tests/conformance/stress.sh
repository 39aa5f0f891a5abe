#!/bin/sh
# stress-ng's file stressors, one after the other, each verifying what it does.
#
# Usage: stress.sh DIRECTORY [SECONDS]    (SECONDS for each stressor, 5)
# Needs: stress-ng 0.15 or later.
#
# Left out, because they do not act on the directory or need what FUSE does not pass on:
#   chattr, inode-flags, verity   ioctl FS_IOC_SETFLAGS and FS_IOC_ENABLE_VERITY
#   bind-mount, binderfs          mount file systems of their own
#   fanotify                      marks whole mounts and takes events from everybody
#   file-ioctl                    FIEMAP, FICLONE and the like are ioctls
#   fiemap                        the same
#   io-uring                      stress-ng 0.15 asks for a file it has removed, and fails on any file system
#   procfs, eventfd, ioprio, dup  nothing of the directory
set -eu

directory=${1:?usage: stress.sh DIRECTORY [SECONDS]}
seconds=${2:-5}
command -v stress-ng >/dev/null || { echo "stress.sh: no stress-ng: install it" >&2; exit 2; }

stressors="access aio aiol chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify fallocate fcntl filename
    flock fpunch fsize fstat getdent handle hdd inotify io iomix lease link locka lockf lockofd mknod open
    readahead rename revio seek symlink sync-file touch utime xattr"

work=$(mktemp -d "$directory/stress.XXXXXX")
log=$(mktemp)
trap 'rm -rf "$work" "$log"' EXIT

failed=
skipped=
for stressor in $stressors; do
    case $stressor in
        hdd) more="--hdd-bytes 32m" ;;
        iomix) more="--iomix-bytes 32m" ;;
        seek) more="--seek-size 16m" ;;
        copy-file) more="--copy-file-bytes 128m" ;;
        fallocate) more="--fallocate-bytes 64m" ;;
        readahead) more="--readahead-bytes 32m" ;;
        revio) more="--revio-bytes 16m" ;;
        sync-file) more="--sync-file-bytes 16m" ;;
        dentry) more="--dentries 256" ;;
        *) more= ;;
    esac
    # The options are words of our own.
    # shellcheck disable=SC2086
    set -- stress-ng --temp-path "$work" --verify --timeout "${seconds}s" "--$stressor" 2 $more
    echo "+ $*"
    status=0
    "$@" >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ] || grep -q "fail:" "$log"; then
        sed 's/^/    /' "$log"
        failed="$failed $stressor"
    elif grep -q "skipped" "$log" && grep -qi "skipp.*stressor" "$log"; then
        skipped="$skipped $stressor"
    fi
done
[ -z "$skipped" ] || echo "stress.sh: skipped by stress-ng itself:$skipped"
[ -z "$failed" ] || { echo "stress.sh: FAILED:$failed" >&2; exit 1; }
echo "stress.sh: all stressors passed"
