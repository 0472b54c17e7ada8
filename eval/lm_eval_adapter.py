"""`mt eval harness`: runs tasks of lm-eval (EleutherAI's evaluation harness) on a checkpoint.

    mt eval harness --load DIR --tasks arc_easy,lambada_openai

lm-eval reads the tasks, makes the prompts and computes the scores. The adapter in this file is its model: the
log-likelihood of a continuation, the rolling log-likelihood of a text, and generation until a stop text.
`--include-path DIR` names a folder of further task YAMLs. Texts are tokenised as by lm-eval's hf backend: a
continuation's tokens are those of context and continuation together after the context's tokens. One
difference: the name of a special token in a text is ordinary text here.

lm-eval itself runs on rank 0; with torchrun the other ranks share the work on its requests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

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
REQUESTS_AT_ONCE = 512  # requests that a rank works on before results are exchanged
# The other ranks wait while rank 0 reads lm-eval's data, makes prompts and resamples, which takes longer than
# any wait in training.
PATIENCE_MINUTES = 24 * 60.0


@configuration()
class HarnessConfig(TaskConfig):
    """The settings of `mt eval harness`."""

    tasks: tuple[str, ...] = option(
        help="names of tasks, groups or tags of lm-eval or of --include-path, separated by commas or spaces"
    )
    include_path: str | None = option(None, "folder with your own task YAMLs", role="input")
    num_fewshot: int | None = option(None, "examples in the prompt (default: the task's)")
    limit: float | None = option(
        None, "only the first N examples of each task, or a fraction below 1; for a quick look, not a score"
    )
    add_bos_token: bool = option(
        False,
        "begin every text with the vocabulary's BOS, for models that were trained this way (Llama, Gemma)",
    )
    bootstrap_iters: int = option(
        1000, "bootstrap samples for the standard error of a metric without a formula"
    )
    seed: int = option(1234, "seed for the choice of examples in prompts")

    def __post_init__(self):
        super().__post_init__()
        check(
            (bool(self.names), "tasks must name a task: --tasks NAME,NAME"),
            (all(self.names), f"tasks = {' '.join(self.tasks)} has an empty name; write --tasks NAME,NAME"),
            (
                self.num_fewshot is None or self.num_fewshot >= 0,
                f"num_fewshot = {self.num_fewshot} must not be negative",
            ),
            (self.limit is None or self.limit > 0, f"limit = {self.limit} must be above 0"),
            (self.bootstrap_iters >= 0, f"bootstrap_iters = {self.bootstrap_iters} must not be negative"),
        )

    @property
    def names(self) -> list[str]:
        return [name for item in self.tasks for name in item.split(",")]


def harness(config: HarnessConfig) -> dict | None:
    """The summary of `mt eval harness` on rank 0, None on the other ranks."""
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
            raise UserError(f"add_bos_token: the tokenizer of {config.load} has no BOS token; leave it out")
        adapter = LmEvalAdapter(model, mesh, add_bos_token=config.add_bos_token)
        if mesh.rank != 0:
            if not adapter.serve():
                mesh.exit_quietly()
            return None
        try:
            found = _evaluate(config, tasks, adapter)
        except UserError:
            adapter.dismiss(success=False)
            raise
        adapter.dismiss(success=True)
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
    """lm-eval's index of tasks; raises UserError for a name that it does not have."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if config.include_path:
        own = TaskManager(include_path=config.include_path, include_defaults=False)
        if all(own.match_tasks([name]) for name in config.names):
            return own  # reading the index of lm-eval's own tasks would take seconds
    manager = TaskManager(include_path=config.include_path)
    known = manager.all_tasks
    for name in config.names:
        if not manager.match_tasks([name]):
            place = (
                f", nor in {config.include_path}"
                if config.include_path
                else "; --include-path DIR adds your own tasks"
            )
            raise UserError(
                f"tasks: {name} is none of lm-eval's {len(known):,} tasks{place}{nearest(name, known)}"
            )
    return manager


def _evaluate(config: HarnessConfig, tasks: TaskManager, adapter: LmEvalAdapter) -> dict:
    # Otherwise lm-eval resamples in forks of this process, and a fork of a process with threads can deadlock.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the summary
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
        # errors of a task's YAML, of its data or of their server; UserError is none of these
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


class LmEvalAdapter(TemplateLM):
    """A LanguageModel with lm-eval's interface.

    truncated: the number of requests whose context was cut at its beginning to fit the model.
    """

    def __init__(self, model: LanguageModel, mesh: Mesh | None = None, *, add_bos_token: bool = False):
        super().__init__()
        self.model, self.mesh = model, mesh or Mesh(0, 1, model.device)
        bos = model.tokenizer.bos
        self.bos = [bos] if add_bos_token and bos is not None else []
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
        return self._on_all_ranks("loglikelihood", pairs)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text in nats, after the prefix token.

        Windows have the model's length, and each token is scored once.
        """
        windows: list[tuple[list[int], int]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            of_text = list(document_windows([self.prefix_token_id, *self.tok_encode(text)], self.max_length))
            windows += of_text
            counts.append(len(of_text))
        nats = iter(self._on_all_ranks("rolling", windows))
        return [sum(next(nats) for _ in range(count)) for count in counts]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """The text generated after each context, cut before the first stop text.

        It is sampled where the task sets do_sample, otherwise greedy.
        """
        prompts = [self._prompt(*request.args) for request in requests]
        numbered = [(ids, sampling, number) for number, (ids, sampling) in enumerate(prompts)]
        return self._on_all_ranks("generate", numbered)

    def _prompt(self, context: str, rules: dict) -> tuple[list[int], Sampling]:
        """(ids of the context, its settings) of one request. rules: the task's generation_kwargs."""
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
        samples = bool(rules.get("do_sample", temperature > 0)) and temperature != 0
        top_p = float(rules.get("top_p", 0.0))
        sampling = Sampling(
            max_new_tokens=new_tokens,
            greedy=not samples,
            temperature=temperature if samples else 1.0,
            top_k=int(rules.get("top_k", 0)),
            top_p=0.0 if top_p == 1 else top_p,
            stop=tuple([until] if isinstance(until, str) else until),
        )
        ids = self.tok_encode(context)
        kept = ids[-(self.max_length - new_tokens) :]
        self.truncated += len(kept) < len(ids)
        return kept, sampling

    def _on_all_ranks(self, method: str, items: Sequence) -> list:
        """On rank 0: the answers for all items, on which all ranks work."""
        self.mesh.broadcast_object((method, items))
        return self._work(method, items)

    def serve(self) -> bool:
        """On the other ranks: works on rank 0's requests until `dismiss`; whether rank 0 succeeded."""
        while not isinstance(message := self.mesh.broadcast_object(None), bool):
            with contextlib.suppress(UserError):  # rank 0 has the same error and reports it
                self._work(*message)
        return message

    def dismiss(self, *, success: bool) -> None:
        """On rank 0: ends `serve` on the other ranks."""
        self.mesh.broadcast_object(success)

    def _work(self, method: str, items: Sequence) -> list:
        methods: dict[str, Callable[[list], list]] = {
            "loglikelihood": self._loglikelihood,
            "rolling": self._rolling,
            "generate": self._generate,
        }
        return [answer for _, answer in map_over_ranks(self.mesh, items, methods[method], REQUESTS_AT_ONCE)]

    def _loglikelihood(self, pairs: list) -> list[tuple[float, bool]]:
        return self.model.loglikelihood(pairs)

    def _rolling(self, windows: list) -> list[float]:
        return [float(logprobs.sum(dtype="float64")) for logprobs in self.model.rolling(windows)]

    def _generate(self, numbered: list) -> list[str]:
        prompts, sampling, numbers = zip(*numbered)
        return [c.text for c in self.model.generate(prompts, sampling, [(0, n) for n in numbers])]
