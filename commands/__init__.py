"""Commands about other commands: pipelines (`mt run`), reports, checks of the machine."""
