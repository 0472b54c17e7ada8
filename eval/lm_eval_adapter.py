"""lm-eval's tasks (EleutherAI's evaluation harness) on a checkpoint: `mt eval harness --tasks
arc_easy,lambada_openai`.

lm-eval reads the tasks, makes the prompts and counts; this file is the model behind them: the log-likelihood
of a continuation, the rolling log-likelihood of a text, and text until a stop. `--include-path DIR` names a
folder of task YAMLs of your own. Texts are cut into tokens as lm-eval's hf backend does it (a continuation's
tokens are those that the context's leave of the whole), but a special token's name in a text is only letters
here.

lm-eval itself runs on the first rank; with torchrun the others work on the requests with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence

from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from ..core.config import UserError, check, configuration, nearest, option
from ..train.checkpoint.open import open_checkpoint
from ..train.parallel.mesh import Mesh
from .generation.sampling import Sampling
from .lm import LanguageModel, open_scorer
from .results import Results, launch_ranks, map_over_ranks
from .tasks.task_config import TaskConfig
from .windows import document_windows

DEFAULT_NEW_TOKENS = 256  # lm-eval's
REQUESTS_AT_ONCE = 512
# the other ranks wait while the first reads lm-eval's data, makes prompts and resamples: longer than any
# would in training
PATIENCE_MINUTES = 24 * 60.0


@configuration()
class HarnessConfig(TaskConfig):
    tasks: tuple[str, ...] = option(
        help=(
            "names of lm-eval's tasks, groups or tags, or of those in --include-path; with commas or spaces"
            " between"
        )
    )
    include_path: str | None = option(None, "folder of task YAMLs of your own", role="input")
    num_fewshot: int | None = option(None, "examples in the prompt (default: the task's)")
    limit: float | None = option(
        None, "only the first so many examples of each task, or a share below 1: for a look, not for a score"
    )
    add_bos_token: bool = option(
        False,
        "begin every text with the vocabulary's BOS, as models want that were trained so (Llama, Gemma)",
    )
    bootstrap_iters: int = option(1000, "resamplings behind the standard error of a metric without a formula")
    seed: int = option(1234, "of the examples in prompts")

    def __post_init__(self):
        super().__post_init__()
        check(
            (bool(self.names), "tasks must name a task: --tasks NAME,NAME"),
            (
                self.num_fewshot is None or self.num_fewshot >= 0,
                f"num_fewshot = {self.num_fewshot} must not be negative",
            ),
            (self.limit is None or self.limit > 0, f"limit = {self.limit} must be above 0"),
            (self.bootstrap_iters >= 0, f"bootstrap_iters = {self.bootstrap_iters} must not be negative"),
        )

    @property
    def names(self) -> list[str]:
        return [name for item in self.tasks for name in item.split(",") if name]


def harness(config: HarnessConfig) -> dict | None:
    """The scores of lm-eval's tasks."""
    with (
        launch_ranks(config.tensor_model_parallel_size, PATIENCE_MINUTES) as mesh,
        Results(
            "eval harness",
            config,
            [config.load, *config.retrieval.inputs, *([config.include_path] if config.include_path else [])],
            mesh,
        ) as results,
    ):
        if results.finished:
            return results.finished if mesh.rank == 0 else None
        tasks = mesh.on_rank_0(lambda: _tasks(config))
        model = open_scorer(
            open_checkpoint(config.load),
            config.seq_length or "trained",
            config.micro_batch_size,
            config.retrieval,
            mesh,
        )
        if config.add_bos_token and model.tokenizer.bos is None:
            raise UserError(
                f"add_bos_token: the tokenizer of {config.load} has no token that begins a text; leave it out"
            )
        adapter = Adapter(model, mesh, add_bos_token=config.add_bos_token)
        if mesh.rank != 0:
            if not adapter.serve():
                mesh.exit_quietly()
            return None
        try:
            found = _evaluate(config, tasks, adapter)
        except UserError:
            adapter.dismiss(well=False)
            raise
        adapter.dismiss(well=True)
        with results.predictions() as write:
            for name, samples in found["samples"].items():
                for sample in samples:
                    write(_prediction(name, sample))
        examples = {name: counted["effective"] for name, counted in found["n-samples"].items()}
        return results.finish(
            {"examples": sum(examples.values())},
            examples=examples,
            seq_length=model.max_length,
            scores={name: _scores(values) for name, values in found["results"].items()},
            versions=found["versions"],
            fewshot=found["n-shot"],
            truncated=adapter.truncated,
        )


def _tasks(config: HarnessConfig) -> TaskManager:
    """lm-eval's index of tasks; raises UserError for a name that is not in it."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if config.include_path:
        own = TaskManager(include_path=config.include_path, include_defaults=False)
        if all(own.match_tasks([name]) for name in config.names):
            return own  # the index of lm-eval's own tasks takes seconds
    manager = TaskManager(include_path=config.include_path)
    known = manager.all_tasks
    for name in config.names:
        if not manager.match_tasks([name]):
            place = (
                f", nor in {config.include_path}"
                if config.include_path
                else "; --include-path DIR adds tasks of your own"
            )
            raise UserError(
                f"tasks: {name} is none of lm-eval's {len(known):,} tasks{place}{nearest(name, known)}"
            )
    return manager


def _evaluate(config: HarnessConfig, tasks: TaskManager, adapter: Adapter) -> dict:
    # lm-eval would resample on forks of this process, and a fork of a process with threads (torch's) may wait
    # for ever.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what lm-eval prints is no part of the summary
            return simple_evaluate(
                model=adapter,
                tasks=tasks.match_tasks(config.names),
                task_manager=tasks,
                num_fewshot=config.num_fewshot,
                limit=config.limit,
                bootstrap_iters=config.bootstrap_iters,
                random_seed=config.seed,
                numpy_random_seed=config.seed,
                torch_random_seed=config.seed,
                fewshot_random_seed=config.seed,
            )
    except (OSError, KeyError, ValueError, ModuleNotFoundError) as error:
        # Whatever a task's YAML, its data or their server may raise; ours are UserError, which is none of
        # these.
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"tasks {', '.join(config.names)}: lm-eval cannot run them ({type(error).__name__}: {first});"
            " check the task's YAML, and that its data can be had from here"
        ) from error


def _scores(values: dict) -> dict:
    """{"acc": 0.5, "acc_stderr": 0.1} of lm-eval's {"alias": .., "acc,none": 0.5, "acc_stderr,none": 0.1}."""
    scores = {}
    for name, value in values.items():
        metric, _, how = name.partition(",")
        if how:
            scores[metric if how == "none" else f"{metric}/{how}"] = (
                value if isinstance(value, int | float) else None
            )
    return scores


def _prediction(task: str, sample: dict) -> dict:
    return {
        "id": sample["doc_id"],
        "task": task,
        "filter": sample.get("filter"),
        "target": sample["target"],
        "answers": sample["filtered_resps"],
        **{name: sample[name] for name in sample.get("metrics", ())},
    }


class Adapter(TemplateLM):
    """The model as lm-eval sees it.

    `truncated`: requests whose context has lost its head to fit the model.
    """

    def __init__(self, model: LanguageModel, mesh: Mesh | None = None, *, add_bos_token: bool = False):
        super().__init__()
        self.model, self.mesh = model, mesh or Mesh(0, 1, model.device)
        self.bos = [model.tokenizer.bos] if add_bos_token else []
        self.truncated = 0

    @property
    def eot_token_id(self) -> int:
        return self.model.start

    @property
    def prefix_token_id(self) -> int:
        """The context of a text without one: the BOS token, or else the end-of-document token."""
        bos = self.model.tokenizer.bos
        return self.model.start if bos is None else bos

    @property
    def max_length(self) -> int:
        return self.model.max_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        return [*(self.bos if add_special_tokens is not False else []), *self.model.tokenizer.encode(string)]

    def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
        """requests: ((context, continuation), context ids, continuation ids)."""
        pairs = []
        for (_, text), context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens ({text[:40]!r}...) does not fit a sequence"
                    f" of {self.max_length}; raise --seq-length"
                )
            self.truncated += len(context) + len(continuation) > self.max_length + 1
            pairs.append((context, continuation))
        return self._ask("loglikelihood", pairs)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text: windows of the model's length, each token scored once,
        after the prefix token.
        """
        windows, counts = [], []
        for (text,) in (request.args for request in requests):
            own = list(document_windows([self.prefix_token_id, *self.tok_encode(text)], self.max_length))
            windows += own
            counts.append(len(own))
        nats = iter(self._ask("rolling", windows))
        return [sum(next(nats) for _ in range(count)) for count in counts]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to the first of its stops, which is cut off.

        Sampled where the task says do_sample.
        """
        wanted = [
            self._generation(context, rules) for context, rules in (request.args for request in requests)
        ]
        return self._ask(
            "generate", [(ids, sampling, number) for number, (ids, sampling) in enumerate(wanted)]
        )

    def _generation(self, context: str, rules: dict) -> tuple[list[int], Sampling]:
        until = rules.get("until") or []
        new_tokens = next(
            (int(rules[name]) for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in rules),
            DEFAULT_NEW_TOKENS,
        )
        if new_tokens >= self.max_length:
            raise UserError(
                f"the task generates {new_tokens} tokens (max_gen_toks), but the model has {self.max_length}"
                " positions; give a model with more, or lower it in the task"
            )
        temperature = float(rules.get("temperature", 0.0) or 0.0)
        draws = bool(rules.get("do_sample", temperature > 0)) and temperature != 0
        top_p = float(rules.get("top_p", 0.0))
        sampling = Sampling(
            max_new_tokens=new_tokens,
            greedy=not draws,
            temperature=temperature if draws else 1.0,
            top_k=int(rules.get("top_k", 0)),
            top_p=0.0 if top_p == 1 else top_p,
            stop=tuple([until] if isinstance(until, str) else until),
        )
        ids = self.tok_encode(context)
        kept = ids[-(self.max_length - new_tokens) :]
        self.truncated += len(kept) < len(ids)
        return kept, sampling

    def _ask(self, method: str, items: Sequence) -> list:
        """The answers of all ranks together."""
        self.mesh.broadcast_object((method, items))
        return self._work(method, items)

    def serve(self) -> bool:
        """On the other ranks: works on what the first is asked, until it dismisses them; whether all went
        well.
        """
        while not isinstance(order := self.mesh.broadcast_object(None), bool):
            with contextlib.suppress(UserError):  # which the first has too, and says
                self._work(*order)
        return order

    def dismiss(self, *, well: bool) -> None:
        self.mesh.broadcast_object(well)

    def _work(self, method: str, items: Sequence) -> list:
        return [
            answer
            for _, answer in map_over_ranks(self.mesh, items, getattr(self, f"_{method}"), REQUESTS_AT_ONCE)
        ]

    def _loglikelihood(self, pairs: list) -> list[tuple[float, bool]]:
        return self.model.loglikelihood(pairs)

    def _rolling(self, windows: list) -> list[float]:
        return [float(logprobs.sum(dtype="float64")) for logprobs in self.model.rolling(windows)]

    def _generate(self, wanted: list) -> list[str]:
        prompts, sampling, numbers = zip(*wanted)
        return [c.text for c in self.model.generate(prompts, sampling, [(0, n) for n in numbers])]
