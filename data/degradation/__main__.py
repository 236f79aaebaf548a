from sed_sr.options.cli import renamed_command

renamed_command(
    "data.degradation",
    "data.prepare.degrade (for a folder) or python -m utils.visualization.degradation_sheet (for a photograph)",
)
