"""FastAPI: a client that lives as long as the application, and handlers mounted under /rpc.

It needs FastAPI: `pip install fastapi`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request

from resilient_client import ClientProxy, RemoteError, ResilientClientError, Server

stock = Server("memory://stock")  # stands for a service somewhere else


@stock.message_pattern("stock.level")
async def level(article: str) -> int:
    if article == "unicorn":
        raise RemoteError("no such article", status=404)
    return 7


rpc = Server()  # no URL: it answers at /rpc of the application


@rpc.message_pattern("price")
async def price(article: str) -> float:
    return 2.5


application = rpc.asgi


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with stock, rpc, ClientProxy("memory://stock") as client:
        app.state.stock = client
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/rpc", application)


def stock_client(request: Request) -> ClientProxy:
    client: ClientProxy = request.app.state.stock
    return client


@app.get("/articles/{article}")
async def show(article: str, stock: Annotated[ClientProxy, Depends(stock_client)]) -> dict:
    try:
        return {"article": article, "level": await stock.send("stock.level", article, timeout=2)}
    except RemoteError as error:
        raise HTTPException(error.status or 502, error.message) from error
    except ResilientClientError as error:
        raise HTTPException(503, "the stock service cannot be asked") from error


async def main() -> None:
    # Instead of uvicorn, so that this file ends by itself.
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app)) as browser,
    ):
        for article in ("tea", "unicorn"):
            answer = await browser.get(f"http://app/articles/{article}")
            print(article, answer.status_code, answer.json())
        async with ClientProxy("http://app/rpc", client=browser) as caller:
            print("price over HTTP:", await caller.send("price", "tea", returns=float))


if __name__ == "__main__":
    asyncio.run(main())
