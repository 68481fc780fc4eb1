import asyncio
import io
import logging
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from loramem import logs


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("gateway", "info", stream)
    yield stream
    logging.captureWarnings(False)
    logging.basicConfig(level=level, handlers=handlers, force=True)
    for name in (*logs.OWN_LOGGERS, *logs.CONFIDING_LOGGERS, *logs.CHATTY_LOGGERS):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_a_record_is_one_line_with_time_level_role_and_name(output: io.StringIO) -> None:
    logging.getLogger("server.answer").info("answered in %d ms", 41)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO gateway server\.answer: answered in 41 ms\n", output.getvalue()
    )


def test_a_message_cannot_forge_a_second_line(output: io.StringIO) -> None:
    logging.getLogger("server").info("title %s", "a\r\n2026-01-01T00:00:00.000Z INFO gateway server: forged")
    assert output.getvalue().count("\n") == 1


def test_control_characters_and_line_separators_are_escaped(output: io.StringIO) -> None:
    logging.getLogger("server").info("title %s.", "a\x1b[2J\0\t\x7f\x85\u2028\u2029 é")
    assert output.getvalue().endswith(r" title a\x1b[2J\x00\t\x7f\x85\u2028\u2029 é." + "\n")


def test_bound_ids_are_on_the_line_and_end_with_their_block(output: io.StringIO) -> None:
    log = logging.getLogger("server")
    with logs.bind(request_id="req_1"):
        with logs.bind(job_id="job_2"):
            log.info("inner")
            assert logs.bound_ids() == {"request_id": "req_1", "job_id": "job_2"}
        log.info("outer")
    log.info("bare")
    inner, outer, bare = output.getvalue().splitlines()
    assert " request_id=req_1 job_id=job_2 " in inner
    assert " request_id=req_1 server: outer" in outer
    assert "_id=" not in bare


def test_binding_ends_when_the_block_raises() -> None:
    with pytest.raises(KeyError), logs.bind(job_id="job_1"):
        raise KeyError
    assert logs.bound_ids() == {}


def test_concurrent_requests_do_not_see_each_others_ids(output: io.StringIO) -> None:
    async def request(name: str) -> None:
        with logs.bind(request_id=name):
            await asyncio.sleep(0)
            await asyncio.to_thread(logging.getLogger("server").info, "of %s", name)

    async def both() -> None:
        await asyncio.gather(request("req_a"), request("req_b"))

    asyncio.run(both())
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    for line in lines:
        named = re.search(r"request_id=(\w+) .* of (\w+)", line)
        assert named
        assert named[1] == named[2]


def test_every_line_of_a_traceback_is_found_by_the_id(output: io.StringIO) -> None:
    with logs.bind(job_id="job_9"):
        try:
            raise ValueError("rank 7\nis not allowed")
        except ValueError:
            logging.getLogger("trainer_worker").exception("failed")
    lines = output.getvalue().splitlines()
    assert len(lines) > 3
    assert all(" ERROR gateway job_id=job_9 " in line for line in lines)
    assert lines[-2].endswith("ValueError: rank 7")


def test_debug_opens_our_loggers_and_no_library(output: io.StringIO) -> None:
    logs.configure("worker", "debug", output)
    logging.getLogger("trainer_worker.train").debug("ours")
    logging.getLogger("somebody.else").debug("theirs")
    logging.getLogger("openai").info("the whole prompt")
    assert "ours" in output.getvalue()
    assert "theirs" not in output.getvalue()
    assert "prompt" not in output.getvalue()


def test_error_level_silences_info(output: io.StringIO) -> None:
    logs.configure("worker", "error", output)
    logging.getLogger("loramem.queue").warning("quiet")
    logging.getLogger("loramem.queue").error("loud")
    assert "quiet" not in output.getvalue()
    assert "loud" in output.getvalue()


def test_python_warnings_become_records(output: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure("worker", "info", output)
        warnings.warn("odd", RuntimeWarning, stacklevel=1)
    assert " WARNING worker py.warnings: " in output.getvalue()


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(KeyError):
        logs.configure("worker", "loud")


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in logs.FORESEEN.items() for text in texts])
def test_what_is_foreseen_is_told_at_debug_alone(output: io.StringIO, name: str, text: str) -> None:
    log, names = logging.getLogger(name), ["libiomp"] * text.count("%s")
    log.warning(text + " %s", *names, "and so on")
    assert output.getvalue() == ""
    log.warning("Not so: " + text, *names)
    log.error(text, *names)
    logging.getLogger("vllm").warning(text, *names)
    assert len(output.getvalue().splitlines()) == 3
    logs.configure("gateway", "debug", output)
    log.warning(text, *names)
    assert len(output.getvalue().splitlines()) == 4


@pytest.mark.parametrize("name", logs.FORESEEN)
def test_the_pinned_vllm_still_warns_so(name: str) -> None:
    found = find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    file = Path(found.submodule_search_locations[0], *name.split(".")[1:]).with_suffix(".py")
    file = file if file.exists() else file.with_suffix("") / "__init__.py"
    source = re.sub(r'"\s*\n\s*f?"', "", file.read_text())
    warnings = re.findall(r'logger\.warning(?:_once)?\(\s*f?"(.*)"', source)
    for text in logs.FORESEEN[name]:
        assert any(found.startswith(text.removesuffix("custom_class")) for found in warnings), text
