"""The command line: pipes, options, exit statuses, terminals."""
