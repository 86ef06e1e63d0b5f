# Sourced by scripts/test, after _venv.sh: parts that are run one after the other, and some beside them in the background.
# A part is run where it is chosen. That it has passed is remembered beside what it ran with, in .venv.

again="scripts/test" # the command that goes on after a failure
taken=()             # seconds of each part
output=""            # folder with what was written in the background
files=""             # what stood for all files when the parts were chosen
declare -A chosen=() # names of parts
declare -A beside=() # name -> process group

# state: prints what stands for all files that git knows, or would add: the commit and what differs from it. Nothing
# where there is no git.
state() {
    local told
    told="$({
        git rev-parse HEAD &&
            git diff --binary --no-ext-diff HEAD &&
            git ls-files --others --exclude-standard &&
            git ls-files --others --exclude-standard | git hash-object --stdin-paths
    } 2>/dev/null)" || return 0
    git hash-object --stdin <<<"$told"
}

# choose NAME...: these alone
choose() {
    local name
    files="$(state)"
    (($#)) || set -- "no name"
    for name in "$@"; do
        if [[ " ${parts[*]} " != *" $name "* ]]; then
            say "there is no part \"$name\"; there are: ${parts[*]}"
            chosen=()
            exit 2
        fi
        chosen[$name]=yes
    done
}

# choose_rest: those that have not passed with these very files
choose_rest() {
    local name
    files="$(state)"
    for name in "${parts[@]}"; do
        if [[ -n "$files" && "$(cat "$root/.venv/.passed-$name" 2>/dev/null)" == "$files" ]]; then
            say "has passed with these files: $name"
        else
            chosen[$name]=yes
        fi
    done
}

# timed COMMAND...: runs it, and says how long it took
timed() {
    local began="$SECONDS" failed=0
    say "$*"
    "$@" || failed=$?
    say "$((SECONDS - began)) s: $*"
    return "$failed"
}

# part NAME COMMAND...: runs it if it is chosen, and remembers how long it took, and that it has passed: not where a file
# was changed meanwhile
part() {
    local name="$1" began="$SECONDS" failed=0
    shift
    [[ -n "${chosen[$name]:-}" ]] || return 0
    rm -f "$root/.venv/.passed-$name"
    timed "$@" || failed=$?
    taken+=("$((SECONDS - began)) s: $name")
    if ((!failed)) && [[ "$(state)" == "$files" ]]; then
        printf '%s\n' "$files" >"$root/.venv/.passed-$name"
    fi
    return "$failed"
}

# start NAME COMMAND...: runs it in the background, in a process group of its own: all of it can be ended
start() {
    local name="$1"
    shift
    [[ -n "$output" ]] || output="$(mktemp -d)"
    set -m
    "$@" >"$output/$name" 2>&1 &
    beside[$name]=$!
    set +m
}

# result NAME: waits for what was started, shows its output, and ends as it did
result() {
    local name="$1" began="$SECONDS" failed=0
    wait "${beside[$name]}" || failed=$?
    unset "beside[$name]"
    taken+=("$((SECONDS - began)) s more: $name")
    cat "$output/$name" >&2
    return "$failed"
}

# What was started and has not been waited for does not outlive the script, however that ends.
end_all() {
    local failed=$? name
    for name in "${!beside[@]}"; do
        say "ended: $name; its last words:"
        kill -- "-${beside[$name]}" 2>/dev/null || true
        tail -n 20 "$output/$name" >&2
    done
    rm -rf "$output"
    if ((failed && ${#chosen[@]})); then
        say "FAILED. To go on with these files: $again"
    fi
}
trap end_all EXIT
