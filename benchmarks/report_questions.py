"""The fifteen questions of "Understanding LoRA as Knowledge Memory", what it found, and what measures them here."""

from dataclasses import dataclass

from benchmarks import report_findings as findings
from benchmarks import report_sweeps as sweeps
from benchmarks.report_times import latency
from benchmarks.report_verdicts import Find

LARGE_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
READY = "until curl -sfo /dev/null http://127.0.0.1:8000/readyz; do sleep 1; done"
STOP = "kill $!; wait"
"""Until its port and home are free for the next one."""
SWEEP = "python -m benchmarks.capacity --json --only sweep"
RECIPES = "python -m benchmarks.recipes --json --data paperqa --only"
PAPERS = "python -m benchmarks.recall --json --dataset paperqa --documents 15 --methods"
LONG = "python -m benchmarks.recall --json --dataset quality --documents 15 --methods"
"""Either takes all the documents that there are: another seed would draw them again."""


@dataclass(frozen=True)
class Question:
    """`find` is none where no result can tell. `on_server`: the command asks a server, else it loads a model.

    `environment` is what that server is told beside its settings.
    """

    number: int
    asked: str
    found: str
    find: Find | None
    command: str
    on_server: bool = True
    environment: tuple[str, ...] = ()

    def repeat(self, command: str) -> str:
        """Shell lines for this command or another of the same benchmark, with the server that it asks."""
        return _served(command, *self.environment) if self.on_server else command

    @property
    def large_command(self) -> str:
        """The same for an 8B model on a GPU."""
        if not self.on_server:
            return f"{self.command} --model {LARGE_MODEL}"
        return _served(self.command, f"LORAMEM_MODEL={LARGE_MODEL}", *self.environment)


def _served(command: str, *environment: str) -> str:
    return "\n".join([" ".join([*environment, "loramem serve &"]), READY, command, STOP])


QUESTIONS = (
    Question(
        1,
        "Does a higher rank hold more?",
        "Yes: at a fixed set of facts, memorization rises steadily with the rank.",
        sweeps.rank,
        SWEEP,
        on_server=False,
    ),
    Question(
        2,
        "Is there a limit, and what sets it?",
        "Yes: at a fixed rank accuracy falls as facts are added, sooner at low ranks.",
        sweeps.load,
        f"{SWEEP} --ranks 1,4,16 --loads 1,4,8",
        on_server=False,
    ),
    Question(
        3,
        "Is the highest rank the most efficient?",
        "No: what is held per trained parameter peaks at a low rank.",
        sweeps.efficiency,
        SWEEP,
        on_server=False,
    ),
    Question(
        4,
        "Does synthetic data help one adapter?",
        "Yes: questions, summaries and rewritings all beat the raw text, questions most.",
        findings.formats,
        f"{RECIPES} formats",
    ),
    Question(
        5,
        "Do several kinds of it together help more?",
        "Mostly: the best score of both models is a mixture's.",
        findings.mixtures,
        f"{RECIPES} formats=qa40,mixtures",
    ),
    Question(
        6,
        "Does a larger base model internalize better?",
        "Yes, but not evenly: much from 0.6B to 1.7B and from 8B to 14B, little between.",
        findings.scale,
        f"{PAPERS} lora",
    ),
    Question(
        7,
        "Does it matter which model writes the training data?",
        "Yes: data of a stronger model gives better adapters.",
        None,
        f"{PAPERS} lora",
        environment=("LORAMEM_WRITER_URL=URL", "LORAMEM_WRITER_MODEL=NAME"),
    ),
    Question(
        8,
        "Do several small adapters hold more than a large one?",
        "Yes, when the right one is always chosen: at 64K tokens the single one is full, the small ones are not.",
        sweeps.partition,
        SWEEP,
        on_server=False,
    ),
    Question(
        9,
        "What does real routing cost?",
        "Much: choosing by text embedding loses against an oracle, and may end below a single adapter.",
        findings.routing,
        f"{PAPERS} routing",
    ),
    Question(
        10,
        "Can merging make up for wrong routing?",
        "In part: three merged by TIES beat the one routed; linear is close, DARE and concatenation are worse.",
        findings.merging,
        f"{PAPERS} merges",
    ),
    Question(
        11,
        "How many should be merged?",
        "As few as hold the answer: with right modules alone, scores fall with each one more.",
        findings.count,
        f"{PAPERS} counts",
    ),
    Question(
        12,
        "How does it do on long documents with questions across them?",
        "Adapters of chunks do worse than one adapter of the document on NarrativeQA.",
        findings.long_documents,
        f"{LONG} table2",
    ),
    Question(
        13,
        "Does text in the prompt help adapters?",
        "Yes, with all of them, the whole text more than passages.",
        findings.context,
        f"{LONG} table2",
    ),
    Question(
        14,
        "Does merging restore what chunks cut apart?",
        "Yes: three merged beat the best one, except closed book with the 1B model.",
        findings.continuity,
        f"{LONG} table2",
    ),
    Question(
        15,
        "Does it save time?",
        "Yes against the whole text in the prompt, when adapters are loaded beforehand.",
        latency,
        "python -m benchmarks.q15 --json",
        on_server=False,
    ),
)
