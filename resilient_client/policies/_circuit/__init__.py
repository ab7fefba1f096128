"""The parts of the circuit breaker that know nothing of pybreaker."""
