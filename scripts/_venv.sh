# Sourced by the scripts beside it. `need LOCK` makes the repository's virtual environment, installs what
# scripts/locks/LOCK.txt names into it, and puts it first on PATH; `prepare LOCK FOLDER` makes another environment.
# Where that was done before, it costs nothing. Set PYTHON to choose the interpreter.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

# uv brings certificates of its own; these make it trust what the machine trusts, as pip does.
export UV_NATIVE_TLS=1 UV_SYSTEM_CERTS=1

# Hundreds of tests start a Python of their own. Where bytecode may not be written (images for containers say so), each
# of them compiles all that it imports: openai alone takes two seconds instead of half of one.
unset PYTHONDONTWRITEBYTECODE

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

# fingerprint PYTHON LOCK...: what an installation depends on: the metadata with the version, the locks, the place (it is
# editable) and the interpreter.
fingerprint() {
    local python="$1" names=()
    shift
    (($#)) && names=("${@/#/scripts/locks/}")
    { cat pyproject.toml "${names[@]/%/.txt}"; grep -h '^__version__' agentlightning/__init__.py; pwd; "$python" -V; } | cksum
}

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

uv="$root/.venv-tools/bin/uv"

# is_installed FOLDER LOCK...: whether this was installed from these very locks
is_installed() {
    local folder="$1"
    shift
    [[ -x "$folder/bin/python" ]] &&
        [[ "$(cat "$folder/.installed-$1" 2>/dev/null)" == "$(fingerprint "$folder/bin/python" "$@")" ]]
}

mark_installed() {
    local folder="$1"
    shift
    fingerprint "$folder/bin/python" "$@" >"$folder/.installed-$1"
}

# uv installs the locks: what takes it seconds takes pip minutes. pip brings the one that the lock "tools" names.
install_uv() {
    local folder="$root/.venv-tools"
    if is_installed "$folder" tools; then
        return
    fi
    make_venv "$folder" "$(find_python)"
    say "installing uv, which installs the rest, into .venv-tools (once)"
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes -r scripts/locks/tools.txt
    mark_installed "$folder" tools
}

show_progress="" # whether uv_pip says how far it is

# uv_pip COMMAND FOLDER ARGUMENT...: a terminal gets uv's own display; a log only lines, without that of each package.
uv_pip() {
    local command="$1" folder="$2"
    shift 2
    if [[ -z "$show_progress" ]]; then
        "$uv" pip "$command" -q --python "$folder/bin/python" "$@"
    elif [[ -t 2 ]]; then
        "$uv" pip "$command" --python "$folder/bin/python" "$@"
    else
        "$uv" pip "$command" --python "$folder/bin/python" "$@" 2>&1 | sed '/^Using /d; /^ [-+~] /d' >&2
    fi
}

# The project as it lies here, without what it depends on, built by what the lock "build" names.
install_project() {
    uv_pip install "$1" --no-deps --build-constraints scripts/locks/build.txt -e .
}

# local_torch FOLDER LOCK: prints torch's build for CPUs where one lies in a folder that PIP_FIND_LINKS names, fits the
# Python of FOLDER, and has a hash that the lock knows
local_torch() {
    local place wheel tag
    tag="$("$1/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')"
    for place in ${PIP_FIND_LINKS:-}; do
        for wheel in "$place"/torch-*+cpu-"$tag"-*.whl; do
            if [[ -f "$wheel" ]] && grep -q "sha256:$(sha256sum "$wheel" | cut -d' ' -f1)" "scripts/locks/$2.txt"; then
                printf '%s\n' "$wheel"
                return
            fi
        done
    done
}

# install_lock FOLDER LOCK: into a new environment
install_lock() {
    local folder="$1" lock="$2" wheel rest
    local from_hashes=(install "$folder" --no-deps --require-hashes -r)
    if ! grep -q '^torch==' "scripts/locks/$lock.txt"; then
        uv_pip "${from_hashes[@]}" "scripts/locks/$lock.txt"
        return
    fi
    wheel="$(local_torch "$folder" "$lock")"
    if [[ -z "$wheel" ]]; then
        uv_pip "${from_hashes[@]}" "scripts/locks/$lock.txt"
        # On Linux, torch from the index needs CUDA's libraries also where there is no GPU.
        [[ "$(uname)" != Linux ]] || uv_pip "${from_hashes[@]}" scripts/locks/cuda.txt
        return
    fi
    uv_pip install "$folder" --no-deps "$wheel"
    rest="$(mktemp)"
    awk '/^[a-zA-Z0-9]/ {torch = /^torch==/} !torch' "scripts/locks/$lock.txt" >"$rest"
    uv_pip "${from_hashes[@]}" "$rest"
    rm "$rest"
}

# prepare LOCK FOLDER [PYTHON]: an environment that holds what the lock names, the project, and nothing else
prepare() {
    local lock="$1" folder="$2" python="${3:-}"
    if is_installed "$folder" "$lock"; then
        return
    fi
    install_uv
    say "installing the lock $lock into ${folder##*/}"
    # Made anew: of an older lock something would stay.
    "$uv" venv -q --clear --python "${python:-$(find_python)}" "$folder"
    install_lock "$folder" "$lock"
    install_project "$folder"
    mark_installed "$folder" "$lock"
}

# What somebody has installed into .venv by hand stays.
install_main() {
    local folder="$root/.venv" show_progress=yes
    # The lock "test" holds all of the others of this environment, in the same releases.
    if is_installed "$folder" "$1" || is_installed "$folder" test; then
        return
    fi
    install_uv
    make_venv "$folder" "$(find_python)"
    say "installing what scripts/locks/$1.txt names into .venv (once)"
    rm -f "$folder"/.installed*
    install_lock "$folder" "$1"
    install_project "$folder"
    mark_installed "$folder" "$1"
}

# What is there already waits for no lock: another process may hold it for minutes, for an environment of its own.
need_uv() {
    if ! is_installed "$root/.venv-tools" tools; then
        with_lock install_uv
    fi
}

need() {
    if ! is_installed "$root/.venv" "$1" && ! is_installed "$root/.venv" test; then
        with_lock install_main "$1"
    fi
    export VIRTUAL_ENV="$root/.venv" PATH="$root/.venv/bin:$PATH"
}

# releases FOLDER PATTERN: those installed there whose names match, in a line
releases() {
    "$uv" pip list -q --python "$1/bin/python" --format freeze | grep -E "^($2)==" | tr '\n' ' '
}
