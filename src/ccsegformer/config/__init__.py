"""Configuration files.

yaml_files: read YAML and apply overrides from the command line.
validation: validate the content with pydantic, with one-line messages.
protocol: evaluation protocols.
"""
