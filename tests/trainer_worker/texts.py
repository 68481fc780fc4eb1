"""Texts and writers that several tests of the trainer's data use."""

import json
from collections.abc import Callable

import httpx

from trainer_worker.writer import Writer

MILL = (
    "Hadle Mill is a watermill in the valley of Orm. It was built by Jon Ask in 1820 from yellow brick. "
    "The wheel measures 12 metres across and is made of larch. Its owner, Mira Toll, grinds only buckwheat. "
    "Since a fire in 1911 the mill has had a copper roof."
)
ODD_TEXTS = {
    "one sentence": "Jon Ask built Hadle Mill.",
    "one word": "Buckwheat",
    "table": "name | metres | wood\nHadle | 12 | larch\nOrm | 9 | oak\n",
    "list": "- larch wheel\n- copper roof\n- yellow brick\n",
    "code": "def grind(grain):\n    return flour(grain) * 12\n",
    "german": "Die Mühle Hadle wurde 1820 von Jon Ask gebaut. Ihr Dach ist aus Kupfer.",
    "chinese": "哈德尔磨坊建于1820年。它的屋顶是铜的。",
    "no sentence ends": "the mill grinds buckwheat and " * 80,
    "symbols": "+++ --- +++ ???",
    "one long word": "larch" * 300,
}


def writer(reply: Callable[[str], str], asked: list[str] | None = None) -> Writer:
    """A writer whose endpoint answers each prompt with `reply(prompt)`."""

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        prompt = str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])
        if asked is not None:
            asked.append(prompt)
        text = reply(prompt)
        return httpx.Response(200, json={"choices": [{"text": text, "message": {"content": text}}]})

    return Writer("http://writer/v1", "m", transport=httpx.MockTransport(answer))
