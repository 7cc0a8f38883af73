# Sourced: how the gate's steps run pytest.

# The quick tests, which start no process and no browser and take no second. Folders that have none
# are not even imported.
QUICK=(-q -m "not slow and not realserver" --ignore=tests/{cli,examples,realserver})

# Run pytest, and what failed once more, alone.
#
# Two cores run several suites at a time, and a test that starts a browser or a cluster then meets
# time limits that have nothing to do with the code. What fails twice has failed. What passed only
# the second time is printed, so that somebody mends it.

second_chance() { # second_chance PYTHON CACHE_FOLDER ARGUMENTS...
  "$1" -m pytest -q -o cache_dir="$PWD/$2" "${@:3}" || once_more "$1" "$2"
}

once_more() { # once_more PYTHON CACHE_FOLDER
  echo "-- Once more, alone, what failed:"
  PYTEST_ADDOPTS="" "$1" -m pytest -o cache_dir="$PWD/$2" -p no:xdist -rA --last-failed \
    --last-failed-no-failures none --no-header -q --tb=short | grep -E '^(PASSED|FAILED|ERROR|E  )|(passed|failed)'
  return "${PIPESTATUS[0]}"
}
