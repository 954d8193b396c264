"""The command line of a recipe: settings, overrides, help, errors."""
