"""`python -m tests.flow.recipe_storm HOME MODEL`: 80 recipes over four slots, 32 at once, while adapters come and go.

At the end the engine's process is killed. Prints one JSON object. A process of its own: the engine takes over signals,
logging and the environment.
"""

import asyncio
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from loramem.base_model import BaseModel, resolve_base_model
from loramem.errors import LoramemError
from loramem.records import AdapterManifest, Recipe, Source
from loramem.settings import Settings
from loramem.store import CONFIG, WEIGHTS, AdapterStore
from server.engine.engine import CORE, Activation, Delta, Engine, EngineAdapter, Sampling
from tests.rows import EXAM

SHAPES = {"self_attn.q_proj": (576, 576), "self_attn.v_proj": (576, 192), "mlp.down_proj": (1536, 576)}
LAYERS, RANK, ADAPTERS, RECIPES, SAMPLES, AT_ONCE = 30, 8, 24, 80, 20, 32
STRENGTH = 0.03
"""Standard deviation of entries: enough that every recipe says something else."""
PROMPT = "The keeper of the lighthouse is called"
TOP = 8
SAMPLING = Sampling(max_tokens=1, logprobs=TOP)
NEVER_OPENED = "ada_never_opened"
KILLED_S = 60
"""Within which the death of the engine is known."""


def main(home: str, model: str) -> None:
    settings = Settings(home=Path(home), model=model, max_loras=4, max_model_len=256, max_concurrent_requests=AT_ONCE)
    settings = settings.model_copy(update={"source_pool_bytes": 40 << 20})
    sys.stdout.write(json.dumps(asyncio.run(Storm(settings).run())) + "\n")


def write_adapter(base: BaseModel, seed: int, folder: Path) -> None:
    noise = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, (module, (inputs, outputs)) in itertools.product(range(LAYERS), SHAPES.items()):
        name = f"base_model.model.model.layers.{layer}.{module}"
        for side, shape in (("lora_A", (RANK, inputs)), ("lora_B", (outputs, RANK))):
            drawn = torch.randn(shape, generator=noise) * STRENGTH
            tensors[f"{name}.{side}.weight"] = drawn.to(torch.bfloat16)
    save_file(tensors, folder / WEIGHTS)
    targets = [module.split(".")[1] for module in SHAPES]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    (folder / CONFIG).write_text(json.dumps(config))


def manifest(base: BaseModel, adapter_id: str, sha256: dict[str, str]) -> AdapterManifest:
    return AdapterManifest(
        adapter_id=adapter_id,
        document_id="doc_1",
        revision=1,
        chunk=0,
        base_model=base.name,
        fingerprint=base.fingerprint,
        rank=RANK,
        alpha=2 * RANK,
        sha256=sha256,
        exam=EXAM,
        training={},
    )


class Storm:
    def __init__(self, settings: Settings) -> None:
        self.base = resolve_base_model(settings)
        self.engine = Engine(settings, self.base)
        self.store = AdapterStore(settings.adapters_path)
        self.ids = [self.publish(f"ada_{seed}", seed) for seed in range(ADAPTERS)]
        self.publish(NEVER_OPENED, ADAPTERS)
        self.numbers: dict[str, int] = {}
        self.last: Activation | None = None

    def publish(self, adapter_id: str, seed: int) -> str:
        write, describe = partial(write_adapter, self.base, seed), partial(manifest, self.base, adapter_id)
        self.store.publish(adapter_id, write, describe)
        return adapter_id

    def recipe(self, method: Any, adapters: Sequence[str]) -> Recipe:
        digests = {one: self.store.manifest(one).sha256[WEIGHTS] for one in adapters}
        return Recipe.of(method, [Source(adapter_id=one, sha256=digests[one], weight=1.0) for one in adapters])

    def recipes(self) -> list[Recipe]:
        draw = random.Random(0)
        combinations = [c for size in (2, 3) for c in itertools.combinations(self.ids, size)]
        return [
            self.recipe(draw.choice(["ties", "ties", "linear", "cat"]), c) for c in draw.sample(combinations, RECIPES)
        ]

    async def run(self) -> dict[str, Any]:
        await self.engine.start()
        try:
            return await self._storm()
        finally:
            self.engine.stop()

    async def _storm(self) -> dict[str, Any]:
        recipes = self.recipes()
        base_before = await self.base_answer()
        reference = [await self.ask(recipe) for recipe in recipes[:SAMPLES]]
        memory_before = self.memory()
        answers = await self._all_at_once(recipes)
        gone = await self._error_of(self.recipe("ties", [self.ids[0], NEVER_OPENED]), remove=NEVER_OPENED)
        again = await self._republished(recipes[0])
        assert self.last is not None
        found = {
            "reference": reference,
            "answers": answers,
            "republished": again,
            "gone": gone,
            "base": [base_before, await self.base_answer()],
            "memory_mib": (self.memory() - memory_before) >> 20,
            "tiers": self.last.tiers,
            "running": self.engine.running,
        }
        return {**found, "killed": await self._killed(recipes[0])}

    async def _all_at_once(self, recipes: Sequence[Recipe]) -> list[Any]:
        """Every recipe once, in an order of its own; half-way the sources of the first one are deleted."""
        gate, asked = asyncio.Semaphore(AT_ONCE), itertools.count()
        order = random.Random(1).sample(range(len(recipes)), len(recipes))
        answers: dict[int, Any] = {}

        async def one(index: int) -> None:
            async with gate:
                if next(asked) == RECIPES // 2:
                    for source in recipes[0].sources:
                        self.store.remove(source.adapter_id)
                answers[index] = await self.ask(recipes[index])

        await asyncio.gather(*(one(index) for index in order))
        return [answers[index] for index in range(len(recipes))]

    async def _error_of(self, recipe: Recipe, *, remove: str) -> str:
        self.store.remove(remove)
        try:
            await self.ask(recipe)
        except LoramemError as error:
            return f"{error.code}: {error.detail}"
        return "no error"

    async def _republished(self, recipe: Recipe) -> list[float]:
        """The sources of a recipe again under new ids, in the same order."""
        seeds = [self.ids.index(source.adapter_id) for source in recipe.sources]
        return await self.ask(self.recipe(recipe.method, [self.publish(f"{self.ids[s]}_new", s) for s in seeds]))

    async def _killed(self, recipe: Recipe) -> dict[str, Any]:
        """What an answer that runs and an activation under way raise when the engine's process is killed."""
        (core,) = [child for child in multiprocessing.active_children() if child.name.startswith(CORE)]
        answer = self.engine.generate(self.engine.encode_prompt(PROMPT), Sampling(max_tokens=200))
        await anext(answer)
        assert core.pid is not None
        os.kill(core.pid, signal.SIGSTOP)  # so that neither comes to its end
        under_way = [asyncio.create_task(_rest(answer)), asyncio.create_task(self._activate(self._adapter(recipe)))]
        await asyncio.sleep(0.5)
        core.kill()
        async with asyncio.timeout(KILLED_S):
            raised = await asyncio.gather(*under_way, return_exceptions=True)
        return {"raised": [type(error).__name__ for error in raised], "dead": self.engine.dead}

    async def _activate(self, adapter: EngineAdapter) -> None:
        async with self.engine.activating(adapter) as activation:
            await activation

    def _adapter(self, recipe: Recipe) -> EngineAdapter:
        name = recipe.digest()
        number = self.numbers.setdefault(name, len(self.numbers) + 1)
        return EngineAdapter(name, number, recipe.path())

    async def ask(self, recipe: Recipe) -> list[float]:
        """Log-probabilities of the most likely next tokens, greatest first: no choice that rounding could turn."""
        adapter = self._adapter(recipe)
        await self.engine.prefetch(adapter)
        async with self.engine.activating(adapter) as activation:
            said = asyncio.create_task(self._logprobs(adapter))  # at once, as the gateway does
            self.last = await activation
            return await said

    async def base_answer(self) -> list[float]:
        return await self._logprobs(None)

    async def _logprobs(self, adapter: EngineAdapter | None) -> list[float]:
        prompt = self.engine.encode_prompt(PROMPT)
        deltas = [delta async for delta in self.engine.generate(prompt, SAMPLING, adapter=adapter)]
        (token,) = [token for delta in deltas for token in delta.logprobs]
        return sorted((logprob for _, logprob in token.top), reverse=True)[:TOP]

    def memory(self) -> int:
        """Bytes that the engine's processes hold and no file backs."""
        return sum(_anonymous(child.pid) for child in psutil.Process().children(recursive=True))


async def _rest(answer: AsyncGenerator[Delta, None]) -> None:
    async for _ in answer:
        pass


def _anonymous(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
