# shellcheck shell=bash
# The set `reads`: what a gateway serves, against nginx on the same files. To be sourced by scripts/bench.

# install_reads: what the measurement needs beside the gateway.
install_reads() {
    # distributions put it where only root looks
    PATH=$PATH:/usr/sbin
    install_missing "nginx:nginx-light" "wrk:wrk" "curl:curl" "python3:python3"
}

# measure_reads GATEWAY WORK ROUNDS JSON KEEP: KEEP is true where the file has the other sets' measurements in it.
measure_reads() {
    local more=()
    if $5; then more=(--keep); fi
    # shellcheck disable=SC2154  # set by lib/common.sh
    python3 "$root/scripts/bench.d/reads.py" --gateway "$1" --work "$2" --rounds "$3" --json "$4" "${more[@]}"
}
