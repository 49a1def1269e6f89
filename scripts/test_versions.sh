#!/usr/bin/env bash
# A quick form of the tests under other versions than those of constraints.txt. Some minutes a leg, and the packages are
# downloaded; `bash scripts/test.sh` is the whole form, under one set of versions.
#
#   bash scripts/test_versions.sh                  every leg
#   bash scripts/test_versions.sh lowest python3.12
#
#   lowest        the lowest transformers within pyproject.toml's bounds: constraints.txt with the lines of
#                 constraints/transformers-lowest.txt in place of its own
#   newest        the newest within bounds, as the package index has it: constraints.txt without the lines of those
#                 packages. While that is the version of constraints.txt, the main suite of .ci/run is this leg too
#   python3.10 … python3.13   constraints.txt, on each that is found; those not found are listed
#
# In `lowest` and `newest`, transformers' own common tests of a model class run as well (tests/model/test_common.py),
# from the source distribution of that version, which pip fetches into build/transformers-tests/VERSION.
#
#   PYTHON=python3.11       the Python of the first two legs
#   VERSIONS_DIR=folder     where the environments are made (build/versions); they are used again

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHONS=(3.10 3.11 3.12 3.13)
VERSIONS_DIR="${VERSIONS_DIR:-build/versions}"
LOWEST=constraints/transformers-lowest.txt
QUICK=(
    tests/test_export.py tests/data/test_prompt.py tests/data/test_chat.py tests/data/video/test_decode.py
    tests/eval/test_captioning.py tests/model/test_builder.py tests/model/test_causal_lm.py
    tests/model/test_generation.py tests/model/test_llava_gpt2.py tests/model/test_lora.py
    tests/model/test_peft_defaults.py tests/model/test_processor.py tests/model/test_remote_code.py
    tests/model/test_vlm.py tests/model/multimodal_encoder tests/serve/test_cli.py tests/train/test_golden.py
    tests/train/test_preprocess.py
)
export HF_HUB_OFFLINE=1 DS_BUILD_OPS=0 TOKENIZERS_PARALLELISM=false PIP_DISABLE_PIP_VERSION_CHECK=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
unset PYTHONPATH

RESULTS=()
FAILED=0

runs() { "$1" -c 'import venv' >/dev/null 2>&1; }
say() { printf '[versions] %s\n' "$*"; }

# $1 = leg. The constraints of a leg, on standard output.
constraints_of() {
    local others
    others="$(sed -nE 's/^([A-Za-z0-9._-]+)==.*/\1/p' "$LOWEST" | paste -s -d '|' -)"
    case "$1" in
        lowest) grep -vE "^($others)==" constraints.txt && cat "$LOWEST" ;;
        newest) grep -vE "^($others)==" constraints.txt ;;
        *) cat constraints.txt ;;
    esac
}

# $1 = python, $2 = folder. The tests of its transformers' source distribution, where the index has one.
fetch_tests() {
    local version place download
    version="$("$1" -c 'import transformers; print(transformers.__version__)')" || return 1
    place="build/transformers-tests/$version"
    if [[ -f "$place/test_modeling_common.py" ]]; then return 0; fi
    download="$2/download"
    rm -rf "$download" && mkdir -p "$download" "$place" &&
        "$1" -m pip download --quiet --no-input --no-deps --no-binary transformers -d "$download" \
            "transformers==$version" &&
        tar -xzf "$download/transformers-$version.tar.gz" -C "$place" --strip-components=2 "transformers-$version/tests"
}

# $1 = leg, $2 = python.
leg() {
    local name="$1" python="$2" place start=$SECONDS status=passed tests=("${QUICK[@]}") versions
    place="$VERSIONS_DIR/$name"
    say "$name: $("$python" --version), environment $place"
    mkdir -p "$place"
    constraints_of "$name" >"$place/constraints.txt"
    if ! cmp -s "$place/constraints.txt" "$place/installed.txt" || ! runs "$place/bin/python"; then
        rm -f "$place/installed.txt"
        "$python" -m venv "$place" &&
            "$place/bin/python" -m pip install --quiet --no-input --use-pep517 -c "$place/constraints.txt" \
                -e ".[dev]" parameterized &&
            cp "$place/constraints.txt" "$place/installed.txt" || status="FAILED to install"
    fi
    if [[ "$status" == passed ]]; then
        if [[ "$name" == lowest || "$name" == newest ]]; then
            fetch_tests "$place/bin/python" "$place" || say "$name: transformers' own tests were not fetched"
            tests+=(tests/model/test_common.py)
        fi
        "$place/bin/python" -m pytest -q --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile "${tests[@]}" ||
            status=FAILED
    fi
    [[ "$status" == passed ]] || FAILED=1
    versions="$("$place/bin/python" -c 'import torch, transformers
print(f"transformers {transformers.__version__}, torch {torch.__version__}")' 2>/dev/null || echo "not installed")"
    RESULTS+=("$(printf '%-11s %-40s %s (%d s)' "$name" "$versions" "$status" $((SECONDS - start)))")
}

DEFAULT="${PYTHON:-}"
for version in 3.11 3.12 3.13 3.10; do
    [[ -z "$DEFAULT" ]] && runs "python$version" && DEFAULT="python$version"
done
[[ -n "$DEFAULT" ]] || { echo "ERROR: no Python ${PYTHONS[*]} with the venv module; name one: PYTHON=/path" >&2 && exit 1; }

LEGS=("$@")
(($#)) || LEGS=(lowest newest "${PYTHONS[@]/#/python}")
for name in "${LEGS[@]}"; do
    case "$name" in
        lowest | newest) leg "$name" "$DEFAULT" ;;
        python3.1[0-3])
            if runs "$name"; then
                leg "$name" "$name"
            else
                RESULTS+=("$(printf '%-11s not found, and so not tested' "$name")")
            fi
            ;;
        *) echo "ERROR: no leg $name: lowest, newest, ${PYTHONS[*]/#/python}" >&2 && exit 2 ;;
    esac
done

printf '\n'
printf '%s\n' "${RESULTS[@]}"
exit "$FAILED"
