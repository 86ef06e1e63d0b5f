# Sourced by the scripts beside it. `need EXTRA...` makes the repository's virtual environment, installs the
# project with these extras into it, and puts it first on PATH; where that was done before, it costs nothing.
# Set PYTHON to choose the interpreter.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

# uv brings certificates of its own; these make it trust what the machine trusts, as pip does.
export UV_NATIVE_TLS=1 UV_SYSTEM_CERTS=1

say() { printf '%s\n' "-- $*" >&2; }

usable_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python; do
        if usable_python "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    say "no Python >= 3.11 found (tried ${PYTHON:+$PYTHON, }python3, python3.11 to python3.14);" \
        "install one, or name one: PYTHON=/path/to/python $0"
    return 1
}

# What an installation depends on: the metadata, the place (it is editable) and the interpreter.
fingerprint() { { cat pyproject.toml; pwd; "$1" -V; } | cksum; }

make_venv() {
    local folder="$1" python="$2"
    if usable_python "$folder/bin/python"; then
        return
    fi
    say "making $folder with $("$python" -V)"
    rm -rf "$folder"
    if ! "$python" -m venv "$folder" >/dev/null; then
        rm -rf "$folder"
        say "$python cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)"
        return 1
    fi
}

take_lock() {
    local python
    python="$(find_python)"
    exec 9<pyproject.toml
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
}

# with_lock COMMAND...: only one process at a time. COMMAND runs in a shell of its own, which ends at the first thing
# that fails and frees the lock by ending. Bash ignores `set -e` in all that a condition calls: never write
# `if with_lock ...` or `with_lock ... ||`; whoever goes on after a failure writes `set +e` before it and reads $?.
with_lock() (
    set -e
    take_lock
    "$@"
)

install_extras() {
    local folder="$root/.venv" extra wanted missing=()
    make_venv "$folder" "$(find_python)"
    wanted="$(fingerprint "$folder/bin/python")"
    for extra in "$@"; do
        if [[ "$(cat "$folder/.installed-$extra" 2>/dev/null)" != "$wanted" ]]; then
            missing+=("$extra")
        fi
    done
    if ((${#missing[@]} == 0)); then
        return
    fi
    # Debian 12's pip gives up on this set of requirements; the newest resolves it in a minute.
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check -U pip
    local joined
    joined="$(IFS=,; echo "${missing[*]}")"
    say "installing agentlightning-otel[$joined] into .venv (once)"
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check -e ".[$joined]"
    for extra in "${missing[@]}"; do
        printf '%s\n' "$wanted" >"$folder/.installed-$extra"
    done
}

need() {
    with_lock install_extras "$@"
    export VIRTUAL_ENV="$root/.venv" PATH="$root/.venv/bin:$PATH"
}
