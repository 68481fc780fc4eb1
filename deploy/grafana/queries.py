"""Questions: how many, how they end, how long they take, where the time goes, and how busy the engine is."""

from typing import Any

from deploy.grafana.overview import ASKED
from deploy.grafana.panels import TOKENS_PER_SECOND, Query, Row, board, heat, label_values, lines
from deploy.grafana.promql import buckets, mean, quantile, rate, share

MODE = 'mode=~"$mode"'
ANSWERED = f'{MODE},outcome="answered"'
DURATION = "loramem_query_duration_seconds"
TTFT, STAGE = "loramem_query_ttft_seconds", "loramem_query_stage_duration_seconds"
ACCEPTED, DRAFTED = (f"vllm:spec_decode_num_{which}_tokens_total" for which in ("accepted", "draft"))


def queries() -> dict[str, Any]:
    about = "Rate, errors and latency of questions by mode, stages of an answer, tokens, saturation of the engine."
    variables = [label_values("mode", "mode", f"{DURATION}_count")]
    return board("queries", about, [_rate(), _latency(), _stages(), _tokens(), _engine()], variables)


def _rate() -> Row:
    return Row(
        "Rate and errors",
        [
            lines(
                "Questions by mode",
                "Questions that ended, in any way, a second. `auto`: ended before its mode was chosen.",
                "reqps",
                Query(rate(f"{DURATION}_count", MODE, "mode"), "{{mode}}"),
                stacked=True,
            ),
            lines(
                "Questions by outcome",
                "`refused`: nothing stored is about it. `rejected`: an error of the client's. `failed`: ours. "
                "`aborted`: the client left.",
                "reqps",
                Query(rate(f"{DURATION}_count", MODE, "outcome"), "{{outcome}}"),
                stacked=True,
            ),
            lines(
                "Errors by mode",
                "Share of questions that failed or were rejected.",
                "percentunit",
                Query(share(f"{DURATION}_count", 'outcome=~"failed|rejected"', MODE, "mode"), "{{mode}}"),
                most=1,
            ),
            lines(
                "Questions in flight",
                "Questions that are being answered now.",
                "none",
                Query("sum by (instance) (loramem_queries_in_flight)", "{{instance}}"),
            ),
            lines(
                "Requests by route",
                "HTTP requests a second, without probes.",
                "reqps",
                Query(rate("loramem_http_requests_total", ASKED, "method, route"), "{{method}} {{route}}"),
            ),
            lines(
                "Slowest requests",
                "p95 of the time of an HTTP request; of a streamed answer, until its last byte.",
                "s",
                Query(
                    quantile(0.95, "loramem_http_request_duration_seconds", ASKED, "method, route"),
                    "{{method}} {{route}}",
                ),
            ),
        ],
    )


def _latency() -> Row:
    return Row(
        "Latency of answers",
        [
            *(
                lines(
                    f"Whole answer, p{q * 100:.0f}",
                    "From the question's arrival to its last token; refusals and errors are not counted.",
                    "s",
                    Query(quantile(q, DURATION, ANSWERED, "mode"), "{{mode}}"),
                )
                for q in (0.5, 0.95, 0.99)
            ),
            heat(
                "Whole answer, distribution",
                "How many answers took how long. Two bands are two modes, or merges cached and not.",
                "s",
                buckets(DURATION, ANSWERED),
            ),
            heat(
                "Time to first token, distribution",
                "How many answers began after how long.",
                "s",
                buckets(TTFT, MODE),
            ),
        ],
    )


def _stages() -> Row:
    before = rate(f"{STAGE}_sum", f'{MODE},stage=~"queue|prefill"')
    generated = rate(f"{STAGE}_count", f'{MODE},stage="prefill"')
    answers = rate(f"{DURATION}_count", ANSWERED)
    return Row(
        "Where the time goes",
        [
            lines(
                "Stages of an answer",
                "Mean seconds of an answer in each stage. `prefill` and `decode` are the engine's, `queue` is the wait "
                "for a slot and then for the engine, the others are the gateway's.",
                "s",
                Query(f"{rate(f'{STAGE}_sum', MODE, 'stage')} / on () group_left () {answers}", "{{stage}}"),
                stacked=True,
            ),
            lines(
                "Stages, p95",
                "Of answers that had the stage.",
                "s",
                Query(quantile(0.95, STAGE, MODE, "stage"), "{{stage}}"),
            ),
            lines(
                "Overhead against the engine",
                "An answer's time less queue, prefill and decode: checking, routing, merging, building the prompt.",
                "s",
                *(
                    Query(quantile(q, "loramem_query_overhead_seconds", MODE, "mode"), f"{{{{mode}}}}, {name}")
                    for q, name in ((0.5, "p50"), (0.95, "p95"))
                ),
            ),
            lines(
                "Time to first token by mode, p95",
                "As the gateway sees it.",
                "s",
                Query(quantile(0.95, TTFT, MODE, "mode"), "{{mode}}"),
                width=12,
                limits=(2.5,),
            ),
            lines(
                "Time to first token, and queue and prefill in it",
                "Means of questions only, as the gateway sees them. What lies between the two is routing, merging, "
                "building the prompt, and for a selecting question the first words of its candidates. One whose client "
                "left before the first token counts in the upper line alone, with how long it had waited.",
                "s",
                Query(mean(TTFT, MODE), "to the first token"),
                Query(f"{before} / {generated}", "queue and prefill"),
                width=12,
            ),
        ],
    )


def _tokens() -> Row:
    between = "vllm:inter_token_latency_seconds"
    return Row(
        "Tokens",
        [
            lines(
                "Tokens of questions",
                "`prompt` was read, `completion` was answered, `dropped` is of candidates not selected.",
                TOKENS_PER_SECOND,
                Query(rate("loramem_tokens_total", MODE, "kind"), "{{kind}}"),
                width=6,
            ),
            lines(
                "Tokens of the engine",
                "What the engine computed, a second; prompt tokens from its prefix cache are counted, too.",
                TOKENS_PER_SECOND,
                Query(rate("vllm:prompt_tokens_total"), "read"),
                Query(rate("vllm:generation_tokens_total"), "written"),
                width=6,
            ),
            lines(
                "Between two steps of an answer",
                "The engine's time from one step to the next, which adds a token, or several that were drafted. The "
                "writer's answers count, too.",
                "s",
                Query(quantile(0.5, between), "p50"),
                Query(quantile(0.95, between), "p95"),
                width=6,
            ),
            lines(
                "Drafts accepted",
                "Share of the drafted tokens that the model would have said too. Nothing where nothing is drafted.",
                "percentunit",
                Query(f"{rate(ACCEPTED)} / {rate(DRAFTED)}", "accepted"),
                width=6,
                most=1,
            ),
        ],
    )


def _engine() -> Row:
    return Row(
        "Engine",
        [
            lines(
                "Requests in the engine",
                "`capacity`: no room in the batch or the KV cache. `deferred`: more adapters at once than slots.",
                "none",
                Query("sum(vllm:num_requests_running)", "running"),
                Query("sum by (reason) (vllm:num_requests_waiting_by_reason)", "waiting: {{reason}}"),
            ),
            lines(
                "KV cache in use",
                "Near 100 % requests are preempted, and their prefill is done again.",
                "percentunit",
                Query("max by (instance, engine) (vllm:kv_cache_usage_perc)", "{{instance}}, engine {{engine}}"),
                most=1,
            ),
            lines(
                "Preempted requests",
                "Requests that lost their place in the KV cache, a second. Above 0 for long the cache is too small.",
                "ops",
                Query(rate("vllm:num_preemptions_total"), "preempted"),
            ),
            lines(
                "Prefix cache hits",
                "Share of prompt tokens whose keys and values were at hand. They are kept apart for each adapter.",
                "percentunit",
                Query(f"{rate('vllm:prefix_cache_hits_total')} / {rate('vllm:prefix_cache_queries_total')}", "hits"),
                most=1,
            ),
            lines(
                "Time in the engine, p95",
                "Each request's time waiting, reading its prompt and writing; the writer's requests count, too.",
                "s",
                *(
                    Query(quantile(0.95, f"vllm:request_{part}_time_seconds"), part)
                    for part in ("queue", "prefill", "decode")
                ),
            ),
            lines(
                "Requests that left the engine",
                "By the reason: `stop` is an end of their own, `length` the limit, `abort` was called off.",
                "reqps",
                Query(rate("vllm:request_success_total", by="finished_reason"), "{{finished_reason}}"),
                Query(rate("vllm:admission_rejections_total", by="reason"), "not admitted: {{reason}}"),
            ),
        ],
    )
