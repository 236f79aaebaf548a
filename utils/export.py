"""The former name of `python -m utils.weights.export`."""

from sed_sr.options.cli import renamed_command

if __name__ == "__main__":
    renamed_command("utils.export", "utils.weights.export")
