"""No package: scripts stand here where the original has them. Who imports MindFormers is told that it is missing."""

raise ModuleNotFoundError("No module named 'mindformers'", name="mindformers")
