"""Real servers for tests: started here, on loopback and Unix sockets, ended by their own pid."""
