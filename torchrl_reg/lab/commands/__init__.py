"""The subcommands of ``torchrl-reg``, one module each: ``add_arguments(parser)`` and ``run(arguments) -> int``."""
