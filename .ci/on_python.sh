#!/usr/bin/env bash
# Run the wheel's demo and the quick tests on the Python $1, whose interpreter is $2. The tests only
# where the gate does not run on that interpreter itself.
# What they print comes out at the end, in one piece: two of these run at a time.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$PWD/${VENV:-.venv}/bin
env=build/python$1
wheel=$(echo dist/*.whl)

check() {
  "$2" -VV
  "$bin/uv" venv -q --clear --python "$2" "$env"
  "$bin/uv" pip install -q --python "$env" "${wheel}[cli]"
  "$env/bin/xai-tasks" demo 2>&1 | tail -n 1 &
  demo=$!
  if [ "$("$2" -VV)" = "$("$bin/python" -VV)" ]; then
    echo "The step \`tests\` runs all tests on it."
    wait "$demo"
    return
  fi
  "$bin/uv" pip install -q --python "$env" "${wheel}[test]" # nothing that the demo uses is replaced
  source .ci/pytest.sh
  export PYTHONSAFEPATH=1 # the wheel's package, not this folder's
  XAI_TASKS_EXAMPLES=20 second_chance "$env/bin/python" "build/cache$1" "${QUICK[@]}"
  wait "$demo"
}

mkdir -p build
set +e
(
  set -e
  check "$@"
) >"build/python$1.log" 2>&1
verdict=$?
set -e
printf -- '-- Python %s\n' "$1"
grep -v '^[.sx]* *\[ *[0-9]*%\]$' "build/python$1.log"
exit "$verdict"
