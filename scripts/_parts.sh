# Sourced by scripts/test, after _venv.sh: parts that are run one after the other, and some beside them in the background.
# A part is run where it is chosen. That it has passed is remembered beside what it ran with, in .venv.

again="scripts/test" # the command that goes on after a failure
taken=()             # seconds of each part
output=""            # folder with what was written in the background
files=""             # what stood for all files when the parts were chosen; empty where that cannot be told
finished=""          # whether the script came to its end
declare -A chosen=() # names of parts
declare -A beside=() # name -> process group

# describe_new: prints what stands for the files whose names it reads, each ended by a NUL: kind, name, target of a link,
# content. Fails where one is a folder: that is a repository of its own, of which git names no more.
describe_new() {
    local name kind plain=()
    while IFS= read -r -d "" name; do
        if [[ -L "$name" ]]; then
            printf 'link %q to %q\n' "$name" "$(readlink -- "$name")"
            continue
        fi
        [[ -f "$name" ]] || return 1
        kind=file
        [[ ! -x "$name" ]] || kind=program
        printf '%s %q\n' "$kind" "$name"
        plain+=("$name")
    done
    ((!${#plain[@]})) || printf '%s\0' "${plain[@]}" | xargs -0 git hash-object --no-filters --
}

# state: prints what stands for all files that git knows, or would add: the commit and what differs from it. Nothing
# where that cannot be told, as without git.
state() {
    local told
    told="$({
        git rev-parse HEAD &&
            git diff --binary --no-ext-diff --no-textconv HEAD &&
            git ls-files -z --others --exclude-standard | describe_new
    } 2>/dev/null)" || return 0
    git hash-object --stdin <<<"$told"
}

# choose NAME...: these alone
choose() {
    local name
    files="$(state)"
    if ((!$#)); then
        say "no part is named; there are: ${parts[*]}"
        exit 2
    fi
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
    [[ -n "$files" ]] ||
        say "all parts are run: without git, or with a repository inside that is not added, changes are not known"
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
    if ((!failed)) && [[ -n "$files" && "$(state)" == "$files" ]]; then
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

# end_groups NUMBER...: ends process groups; what is still there after 5 seconds is killed
end_groups() {
    local number tries=50
    for number in "$@"; do
        kill -TERM -- "-$number" 2>/dev/null || true
    done
    for number in "$@"; do
        while kill -0 -- "-$number" 2>/dev/null && ((tries-- > 0)); do
            sleep 0.1
        done
        kill -KILL -- "-$number" 2>/dev/null || true
        wait "$number" 2>/dev/null || true # its end is reported here, and not among the last words
    done
}

# What was started and has not been waited for does not outlive the script, however that ends.
end_all() {
    local failed=$? name word=FAILED
    end_groups "${beside[@]}"
    for name in "${!beside[@]}"; do
        say "ended: $name; its last words:"
        tail -n 20 "$output/$name" >&2
    done
    rm -rf "$output"
    # After a signal, the status may be that of the last command that ended well.
    ((failed && failed < 128)) || word=STOPPED
    if [[ -z "$finished" ]] && ((${#chosen[@]})); then
        say "$word. To go on with these files: $again"
    fi
}
trap end_all EXIT
