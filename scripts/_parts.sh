# Sourced by scripts/test, after _venv.sh: parts that are run one after the other, and some beside them in the background.

taken=() # seconds of each part
output="$(mktemp -d)"
declare -A beside=() # name -> process group

# timed COMMAND...: runs it, and says how long it took
timed() {
    local began="$SECONDS" failed=0
    say "$*"
    "$@" || failed=$?
    say "$((SECONDS - began)) s: $*"
    return "$failed"
}

# part COMMAND...: runs it, and remembers how long it took
part() {
    local began="$SECONDS" failed=0
    timed "$@" || failed=$?
    taken+=("$((SECONDS - began)) s: $*")
    return "$failed"
}

# start NAME COMMAND...: runs it in the background, in a process group of its own: all of it can be ended
start() {
    local name="$1"
    shift
    set -m
    timed "$@" >"$output/$name" 2>&1 &
    beside[$name]=$!
    set +m
}

# result NAME: waits for what was started, shows its output, and ends as it did
result() {
    local failed=0
    wait "${beside[$1]}" || failed=$?
    unset "beside[$1]"
    cat "$output/$1" >&2
    return "$failed"
}

# What was started and has not been waited for does not outlive the script, however that ends.
end_all() {
    local name
    for name in "${!beside[@]}"; do
        say "ended: $name; its last words:"
        kill -- "-${beside[$name]}" 2>/dev/null || true
        tail -n 20 "$output/$name" >&2
    done
    rm -rf "$output"
}
trap end_all EXIT
