# Sourced: run pytest, and what failed once more, alone.
#
# Two cores run several suites at a time, and a test that starts a browser or a cluster then meets
# time limits that have nothing to do with the code. What fails twice has failed. What passed only
# the second time is printed, so that somebody looks at it.

second_chance() { # second_chance PYTHON CACHE_FOLDER ARGUMENTS...
  local python=$1 cache=$PWD/$2
  shift 2
  "$python" -m pytest -q -o cache_dir="$cache" "$@" && return
  echo "-- Once more, alone, what failed:"
  PYTEST_ADDOPTS="" "$python" -m pytest -o cache_dir="$cache" -p no:xdist -rA --last-failed \
    --last-failed-no-failures none --no-header -q --tb=short | grep -E '^(PASSED|FAILED|ERROR|E  )|(passed|failed)'
  return "${PIPESTATUS[0]}"
}
