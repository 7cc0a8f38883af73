"""The command line. It uses public names only, and only `__main__` imports it.

How a job is put together, for commands that share its parts:

- `_options`: options as decorators, and the values they take. `_settings`: from these to a client.
- `_input`: files, pipes and tables of ids, as one source. `_output`: where lines go; what a file of
  an earlier run holds. `_records`: what one line of such a file says.
- `_tally`: the line of a task, the counts, the exit code. `_progress`: what is shown meanwhile.
- `_job`: one run of `wait`, which takes these apart from each other and joins them.
- `_process`: exit codes, signals, and running a command.

`_app` declares the commands and imports little, so that `--help` and completion are quick: a
command imports what it needs when it runs.
"""
