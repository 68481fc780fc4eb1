"""Tasks that end with what they were begun for."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread_of(executor: Executor, function: Callable[..., T], *args: Any) -> T:
    """As `asyncio.to_thread`, which has one pool for all."""
    run = partial(copy_context().run, function, *args)
    return await asyncio.get_running_loop().run_in_executor(executor, run)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, T]) -> AsyncGenerator[asyncio.Task[T], None]:
    """A task that runs beside what is in the context, and is cancelled when it is left."""
    task = asyncio.create_task(work)
    async with ended([task]):
        yield task


@asynccontextmanager
async def ended(tasks: Sequence[asyncio.Task[Any]]) -> AsyncGenerator[None, None]:
    """Whatever happens inside, none of these tasks runs afterwards; the list may grow meanwhile."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order. The first that fails ends the others, and so does being cancelled, before the error goes on."""
    tasks = [asyncio.ensure_future(item) for item in work]
    async with ended(tasks):
        return await asyncio.gather(*tasks)
