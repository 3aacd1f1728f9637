"""The fleet's side, on laptops and servers: what boards said, commands to many of them, telemetry into a database."""
