from __future__ import annotations

from resilient_client import Server


def test_a_handler_may_refer_to_a_variable_that_is_assigned_later() -> None:
    server = Server("memory://later", telemetry=False)

    @server.message_pattern("front")
    async def front(payload: int) -> object:
        return client, payload

    client: object = None
    assert "front" in [handler.route for handler in server.handlers]
