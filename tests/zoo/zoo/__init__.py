"""Models as people bring them, through every command: structures of three libraries, trained models of packages."""
