"""The former name of the command `python -m utils.visualization.attention_map`."""

from sed_sr.options.cli import renamed_command

if __name__ == "__main__":
    renamed_command("utils.attention_map", "utils.visualization.attention_map")
