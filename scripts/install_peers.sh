#!/bin/sh
# Install the brokers and the NestJS services that the tests talk to; quick when they are there.
set -eu
cd "$(dirname "$0")/.."
exec .venv/bin/python -m tests.peers.install
