"""`deltaw`, as a script that the watcher can run."""

from deltaw.cli import main

main()
