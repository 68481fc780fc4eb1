"""Is the service all right, and which of the other dashboards says more?"""

from typing import Any

from deploy.grafana.panels import BAD, FAULTS, GOOD, NEUTRAL, TOKENS_PER_SECOND, Query, Row, board, lines, number
from deploy.grafana.promql import RANGE, increase, quantile, rate

ASKED = 'route!~"/healthz|/readyz|/metrics"'
UP = ((None, BAD), (1, GOOD))


def overview() -> dict[str, Any]:
    about = "Service level, traffic, engine and queue at a glance; the dashboards linked above say more of each."
    return board("overview", about, [_state(), _service_level(), _questions(), _engine(), _writing()])


def _state() -> Row:
    requests = increase("loramem_http_requests_total", ASKED, over=RANGE)
    errors = increase("loramem_http_requests_total", f'{ASKED},status_class="5xx"', over=RANGE)
    first_tokens = increase("loramem_query_ttft_seconds_count", over=RANGE)
    in_time = increase("loramem_query_ttft_seconds_bucket", 'le="2.5"', over=RANGE)
    answering = ['up{job=~"gateway|trainer"}', *(f'absent(up{{job="{job}"}}) - 1' for job in ("gateway", "trainer"))]
    return Row(
        "State",
        [
            number(
                "Scraped",
                "1 when every process of the job answers Prometheus; 0 when one does not, or none is known.",
                "none",
                Query(f"min by (job) ({' or '.join(answering)})", "{{job}}"),
                steps=UP,
            ),
            number(
                "Engine",
                "1 when the engine of every gateway takes questions; it loads for a while after a start.",
                "none",
                Query("min(loramem_engine_up)", "engine"),
                steps=UP,
                no_value="no gateway",
            ),
            number(
                "Alerts firing",
                "loramem's alerts that fire now; docs/metrics.md says what to do about each.",
                "none",
                Query('count(ALERTS{alertstate="firing",alertname=~"Loramem.+"}) or vector(0)', "alerts"),
                steps=FAULTS,
            ),
            number(
                "Availability",
                "Requests without a server's error in the time shown, probes not counted. The objective is 99.5 %.",
                "percentunit",
                Query(f"1 - ({errors} or vector(0)) / ({requests} > 0)", "availability"),
                steps=((None, NEUTRAL), (0, BAD), (0.995, GOOD)),
                no_value="no requests",
            ),
            number(
                "First token in 2.5 s",
                "Answers whose first token came within 2.5 s, in the time shown. The objective is 95 %.",
                "percentunit",
                Query(f"{in_time} / ({first_tokens} > 0)", "in time"),
                steps=((None, NEUTRAL), (0, BAD), (0.95, GOOD)),
                no_value="no answers",
            ),
            number(
                "Version",
                "Processes of each version; more than one version for long is a deployment that is stuck.",
                "none",
                Query("count by (version) (loramem_build_info)", "{{version}}"),
            ),
        ],
    )


def _service_level() -> Row:
    burning = "1 spends the error budget exactly by the end of its 30 days"
    return Row(
        "Service level: how fast the error budget is spent",
        [
            _burn("Availability burn rate", "availability", f"{burning}; 14.4 for an hour and 6 for six hours alert."),
            _burn("First-token burn rate", "latency", f"{burning}, of answers slower than 2.5 s to their first token."),
            lines(
                "Requests by status",
                "HTTP requests a second, without probes; `none` got no reply because its client left.",
                "reqps",
                Query(rate("loramem_http_requests_total", ASKED, "status_class"), "{{status_class}}"),
                stacked=True,
            ),
        ],
    )


def _burn(title: str, slo: str, meaning: str) -> Any:
    return lines(
        title,
        meaning,
        "none",
        *(Query(f'loramem:slo_burn:rate{window}{{slo="{slo}"}}', f"{{{{sli}}}}, {window}") for window in ("1h", "6h")),
        limits=(6, 14.4),
    )


def _questions() -> Row:
    answered = 'outcome="answered"'
    return Row(
        "Questions (more in: queries)",
        [
            lines(
                "Questions by mode",
                "Questions that ended, however they did, a second.",
                "reqps",
                Query(rate("loramem_query_duration_seconds_count", by="mode"), "{{mode}}"),
                stacked=True,
            ),
            lines(
                "Time to first token",
                "As the gateway sees it, over all modes.",
                "s",
                *(Query(quantile(q, "loramem_query_ttft_seconds"), f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)),
                limits=(2.5,),
            ),
            lines(
                "Time to the whole answer",
                "From the question's arrival to its last token, over all modes.",
                "s",
                *(
                    Query(quantile(q, "loramem_query_duration_seconds", answered), f"p{q * 100:.0f}")
                    for q in (0.5, 0.95, 0.99)
                ),
            ),
        ],
    )


def _engine() -> Row:
    return Row(
        "Engine (more in: queries)",
        [
            lines(
                "Requests in the engine",
                "Waiting ones for long mean that the engine is saturated. Slots are waited for outside it, while each "
                "is held by answers from another adapter.",
                "none",
                Query("sum(vllm:num_requests_running)", "running"),
                Query("sum(vllm:num_requests_waiting)", "waiting"),
                Query("sum(loramem_slots)", "slots"),
                Query("sum(loramem_slots_held)", "slots held"),
                Query("sum(loramem_slots_waiting)", "waiting for a slot"),
            ),
            lines(
                "KV cache in use",
                "Near 100 % requests are preempted, and their prefill is done again.",
                "percentunit",
                Query("max by (instance) (vllm:kv_cache_usage_perc)", "{{instance}}"),
                most=1,
            ),
            lines(
                "Tokens",
                "Tokens that the engine read and wrote, a second.",
                TOKENS_PER_SECOND,
                Query(rate("vllm:prompt_tokens_total"), "read"),
                Query(rate("vllm:generation_tokens_total"), "written"),
            ),
        ],
    )


def _writing() -> Row:
    return Row(
        "Writing (more in: training, stores)",
        [
            lines(
                "Jobs",
                "As the database holds them. Dead ones have used up their attempts.",
                "none",
                *(Query(f'max(loramem_jobs{{state="{state}"}})', state) for state in ("queued", "running", "dead")),
            ),
            lines(
                "Oldest queued job",
                "How long it has waited. It grows while no worker claims jobs, or more come than are done.",
                "s",
                Query("max(loramem_job_queue_oldest_age_seconds)", "oldest"),
            ),
            lines(
                "Disk free",
                "Share of the file system of the data folder that is free.",
                "percentunit",
                Query("loramem_disk_free_bytes / loramem_disk_size_bytes", "{{instance}}"),
                most=1,
            ),
        ],
    )
