#!/usr/bin/env bash
# Finds or makes the Python environment; sourced by train_italian_video.sh and scripts/test.sh.
#
#   source scripts/env.sh                 afterwards `python` and `torchrun` are the environment's
#   bash scripts/env.sh                   only prepares it (on a cluster: once, on a node with network)
#
# The active `python` (of a venv, conda, a container) is used when this repository is installed in it; otherwise `.venv`
# is made, and updated when pyproject.toml or constraints.txt changed. Jobs that start together wait for each other.
#
#   VENV=folder        another place than .venv; the active python is then not looked at
#   PYTHON=python3.12  the Python to make it with
#   LLAVA_EXTRAS=dev   extras of pyproject.toml to install as well, separated by commas
#
# Sets PATH and VIRTUAL_ENV, changes no shell option, and returns 1 after a message when something is missing.

_llava_say() { printf '[env] %s\n' "$*"; }
_llava_fail() {
    printf '\nERROR: %s\n' "$1" >&2
    shift
    (($# == 0)) || printf '  %s\n' "$@" >&2
    return 1
}

# Prints why the active environment's python cannot be used; nothing when it can. Runs outside the repository, whose
# folder would otherwise be imported from the current directory.
_llava_active_problem() {
    (cd / && python - "$1" "$2" <<'PYTHON') 2>/dev/null || echo "its python does not run"
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

repo, extras = sys.argv[1:]
try:
    distribution("llava-italian-video")
except PackageNotFoundError:
    print("this project is not installed in it")
    sys.exit()
spec = find_spec("llava")
here = os.path.join(repo, "llava", "__init__.py")
if spec is None or os.path.realpath(spec.origin or "") != os.path.realpath(here):
    print(f"its llava is another copy: {spec and spec.origin}")
    sys.exit()
wanted = ["torch", "transformers", "accelerate", "av"]
wanted += ["pytest", "xdist", "hypothesis", "ruff", "mypy"] if "dev" in extras.split(",") else []
missing = [name for name in wanted if find_spec(name) is None]
if missing:
    print("it lacks " + ", ".join(missing))
PYTHON
}

# Prints a Python to make the environment with: the default one when it will do, else the newest that is tested.
_llava_find_python() {
    local candidate version seen="" newer=""
    local -a candidates=(python3 python3.13 python3.12 python3.11 python3.10 python)
    [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        version="$("$candidate" -c 'import sys; print("%d %d" % sys.version_info[:2])' 2>/dev/null)" || continue
        seen+=" $candidate (${version/ /.})"
        "$candidate" -c 'import venv' 2>/dev/null || continue
        case "$version" in
            "3 "1[0-3]) echo "$candidate"; return 0 ;;
            "3 "1[4-9]) newer="${newer:-$candidate}" ;;
        esac
    done
    if [[ -n "$newer" ]]; then
        _llava_say "NOTE: only Python 3.10 to 3.13 are tested; going on with $newer." >&2
        echo "$newer"
        return 0
    fi
    _llava_fail "no Python 3.10 or newer with the venv module; found:${seen:- no Python at all}." \
        "Debian, Ubuntu: apt install python3 python3-venv" \
        "a cluster:      module load python/3.12 (or its name there), or activate a conda environment" \
        "or name one:    PYTHON=/path/to/python3.12"
}

# $1 = folder, $2 = python. Debian splits ensurepip off (python3-venv); there the system's own pip fills in.
_llava_make_venv() {
    if "$2" -c 'import ensurepip' 2>/dev/null; then
        "$2" -m venv "$1"
    elif "$2" -m pip --version >/dev/null 2>&1; then
        "$2" -m venv --without-pip "$1" &&
            "$2" -m pip install --quiet --target "$("$1/bin/python" -c \
                'import sysconfig; print(sysconfig.get_path("purelib"))')" pip
    else
        _llava_fail "$2 has neither ensurepip nor pip." "Debian, Ubuntu: apt install python3-venv"
        return 1
    fi || _llava_fail "could not make a virtual environment in $1." \
        "Is the disk full, or the folder not writable? VENV=/other/folder puts it elsewhere."
}

# pip's output, reduced to the lines that explain a wait.
_llava_pip_progress() {
    local line
    while IFS= read -r line; do
        case "$line" in
            *Downloading*MB\)* | *Downloading*GB\)*)
                line="${line##*Downloading }"
                _llava_say "downloading ${line%%-*} (${line##*(}"
                ;;
            "Installing collected packages"*) _llava_say "unpacking $(wc -w <<<"${line#*:}") packages" ;;
        esac
    done
}

# $1 = pip's log. Says what to do about the failures that have a known remedy.
_llava_explain_pip() {
    tail -n 15 "$1" >&2
    local -a remedy=("the whole of pip's output: $1")
    if grep -qiE 'no space left|disk quota exceeded' "$1"; then
        remedy+=("The disk is full or your quota used up (torch with CUDA needs about 8 GB):"
            "  VENV=/scratch/me/venv puts the environment elsewhere, PIP_CACHE_DIR and TMPDIR pip's own files.")
    elif grep -qiE 'connection|name resolution|timed out|proxyerror|SSLError|unreachable' "$1"; then
        remedy+=("The package index was not reached. Behind a proxy: export HTTPS_PROXY=http://host:port"
            "  On a cluster, compute nodes often have no network: run 'bash scripts/env.sh' on a login node first.")
    elif grep -qiE 'no matching distribution|ResolutionImpossible' "$1"; then
        remedy+=("Either the package index was not reached (no network? a proxy to set in HTTPS_PROXY?), or a"
            "  pinned version does not exist for this Python or platform: PYTHON=python3.12 takes another Python.")
    fi
    _llava_fail "installing the dependencies failed." "${remedy[@]}"
}

# $1 = repository, $2 = venv, $3 = extras. One pip call, so that one resolution holds for everything.
_llava_install() {
    local log="$2/install.log" target=".${3:+[$3]}" constraints=constraints.txt
    if [[ ",$3," == *,web,* ]]; then # Gradio takes no Pillow 13.
        constraints="$2/constraints.txt"
        grep -v '^pillow==' "$1/constraints.txt" >"$constraints"
    fi
    _llava_say "installing torch, transformers and the rest: 1 minute, or 10 when CUDA libraries are downloaded"
    # DS_BUILD_OPS=0: DeepSpeed must not compile CUDA code. use-pep517: it has no pyproject.toml, and old versions of
    # pip would want a wheel package for it.
    if ! (cd "$1" && set -o pipefail &&
        DS_BUILD_OPS=0 PIP_DISABLE_PIP_VERSION_CHECK=1 "$2/bin/python" -m pip install --no-input --progress-bar off \
            --use-pep517 -c "$constraints" -e "$target" 2>&1 </dev/null | tee "$log" | _llava_pip_progress); then
        _llava_explain_pip "$log"
        return 1
    fi
    "$2/bin/python" -c 'import torch, transformers
print(f"[env] ready: torch {torch.__version__}, transformers {transformers.__version__}")' ||
        _llava_fail "the installed packages do not import." "Remove $2 and run this again."
}

# $1 = repository, $2 = venv, $3 = extras, $4 = stamp's first lines. Runs under the lock.
_llava_prepare_locked() {
    local stamp="$2/.llava-stamp" extras="$3" python
    if _llava_is_fresh "$stamp" "$4" "$3"; then return 0; fi
    if [[ -f "$stamp" ]]; then extras="$(_llava_union "$(sed -n 3p "$stamp")" "$3")"; fi
    # Half-made, or moved with its old paths inside, or its Python is gone.
    if ! "$2/bin/python" -m pip --version >/dev/null 2>&1 ||
        { [[ -f "$stamp" ]] && [[ "$(sed -n 2p "$stamp")" != "$2" ]]; }; then
        find "$2" -mindepth 1 -maxdepth 1 ! -name .llava-lock -exec rm -rf {} + || return 1
        python="$(_llava_find_python)" || return 1
        _llava_say "making $2 with $("$python" --version 2>&1)"
        _llava_make_venv "$2" "$python" || return 1
    fi
    rm -f "$stamp"
    _llava_install "$1" "$2" "$extras" || return 1
    printf '%s\n%s\n' "$4" "$extras" >"$stamp"
}

_llava_union() { printf '%s\n' "${1//,/$'\n'}" "${2//,/$'\n'}" | sed '/^$/d' | sort -u | paste -s -d , -; }

# $1 = stamp file, $2 = its expected first lines, $3 = extras that must be there.
_llava_is_fresh() {
    [[ -f "$1" && "$(sed -n 1,2p "$1")" == "$2" ]] || return 1
    local have
    have="$(sed -n 3p "$1")"
    [[ "$(_llava_union "$have" "$3")" == "$have" ]]
}

_llava_prepare_venv() {
    local repo="$1" venv="$2" extras="$3" expected status
    expected="$(cd "$repo" && cat pyproject.toml constraints.txt | cksum) $repo"$'\n'"$venv"
    if _llava_is_fresh "$venv/.llava-stamp" "$expected" "$extras" && "$venv/bin/python" -c '' 2>/dev/null; then
        return 0
    fi
    # The folder may be emptied below, so it must be ours (the lock file says so), or empty, or work as it is.
    if [[ ! -e "$venv/.llava-lock" && -n "$(ls -A "$venv")" ]] &&
        ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        _llava_fail "$venv is no virtual environment with pip." "Remove it, or name another folder: VENV=/other/folder."
        return 1
    fi
    if ! : >>"$venv/.llava-lock"; then
        _llava_fail "cannot write to $venv." "Name another folder: VENV=/other/folder."
        return 1
    fi
    (
        if command -v flock >/dev/null; then
            status=0
            flock -n -E 99 9 || status=$?
            if ((status == 99)); then
                _llava_say "another job is preparing $venv; waiting for it (30 minutes at most)"
                flock -w 1800 9 || { _llava_fail "waited 30 minutes for $venv." "Is a job stuck?"; exit 1; }
            fi # any other status: a file system without locks
        fi
        _llava_prepare_locked "$repo" "$venv" "$extras" "$expected" 9>&-
    ) 9>>"$venv/.llava-lock"
}

_llava_env() {
    local repo venv active problem extras="${LLAVA_EXTRAS:-}"
    repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)" || return 1
    venv="${VENV:-$repo/.venv}"
    active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
    if [[ -z "${VENV:-}" && "$active" != "$venv" ]]; then
        problem="$(_llava_active_problem "$repo" "$extras")"
        if [[ -z "$problem" ]]; then
            _llava_say "using the active environment ${active:-of $(command -v python)}"
            return 0
        fi
        [[ -z "$active" ]] || _llava_say "not using the active environment $active: $problem. To use it:" \
            "DS_BUILD_OPS=0 pip install -c constraints.txt -e '.${extras:+[$extras]}'"
    fi
    if ! mkdir -p "$venv"; then
        _llava_fail "cannot make the folder $venv." "Name another: VENV=/other/folder."
        return 1
    fi
    venv="$(cd "$venv" && pwd -P)" || return 1
    _llava_prepare_venv "$repo" "$venv" "$extras" || return 1
    # One that is active already keeps its PATH: what its user put in front of it stays in front.
    if [[ "$active" != "$venv" || "$(python -c 'import sys; print(sys.prefix)' 2>/dev/null)" != "$venv" ]]; then
        export VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
    fi
    unset PYTHONHOME
}

_llava_env
