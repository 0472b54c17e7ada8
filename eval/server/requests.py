"""Request bodies of the server: Megatron-LM's (`PUT /api`) and OpenAI's (`POST /v1/completions`).

Both become a `GenerationRequest`: token ids and the settings of their continuations. No field is ignored:
what cannot be honoured raises `RequestError` with an HTTP status and a message. The messages for `PUT /api`
are Megatron-LM's, word for word, but with HTTP status 400 where Megatron-LM answers 200.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from ...core.config import UserError, nearest
from ...core.terminal import escape
from ..encoder_decoder import EncoderDecoder
from ..generation.sampling import Sampling
from ..lm import LanguageModel

MAX_PROMPTS = 128
MAX_SEED = 2**63 - 1
MAX_MESSAGE = 2000  # characters


class RequestError(Exception):
    """A request that is refused or that failed: HTTP status and message.

    The message may quote the request: it is escaped, because no UTF-8 spells a lone surrogate, and cut.
    """

    def __init__(self, status: int, message: str, retry_after_s: int | None = None):
        message = escape(message)[:MAX_MESSAGE]
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """A checked request.

    first_prompt: the number of the first prompt in the client's longer list; draws depend on the number.
    """

    prompts: list[list[int]]  # each has at least one id
    sampling: Sampling
    seed: int | None = None  # None: a different seed each time
    first_prompt: int = 0
    beam_width: int | None = None
    length_penalty: float = 1.0


@dataclasses.dataclass(frozen=True)
class MegatronField:
    """A field of Megatron-LM's request: default, JSON schema, and its messages for a wrong type or value."""

    default: Any
    schema: dict[str, Any]
    wrong_type: str
    wrong_value: str = ""


BOOLEAN = {"type": "boolean"}
FRACTION = {"type": "number", "minimum": 0, "maximum": 1}
MEGATRON_FIELDS: dict[str, MegatronField] = {
    "tokens_to_generate": MegatronField(
        64,
        {"type": "integer", "minimum": 0},
        "tokens_to_generate must be an integer greater than 0",
        "tokens_to_generate must be an integer greater than or equal to 0",
    ),
    "logprobs": MegatronField(False, BOOLEAN, "logprobs must be a boolean value"),
    "temperature": MegatronField(
        1.0,
        {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
        "temperature must be a positive number less than or equal to 100.0",
        "temperature must be a positive number less than or equal to 100.0",
    ),
    "top_k": MegatronField(
        0,
        {"type": "integer", "minimum": 0, "maximum": 1000},
        "top_k must be an integer equal to or greater than 0 and less than or equal to 1000",
        "top_k must be equal to or greater than 0 and less than or equal to 1000",
    ),
    "top_p": MegatronField(
        0.0,
        FRACTION,
        "top_p must be a positive float less than or equal to 1.0",
        "top_p must be less than or equal to 1.0",
    ),
    "top_p_decay": MegatronField(
        0.0,
        FRACTION,
        "top_p_decay must be a positive float less than or equal to 1.0",
        "top_p_decay must be less than or equal to 1.0",
    ),
    "top_p_bound": MegatronField(
        0.0,
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "top_p_bound must be a positive float less than or equal to top_p",
        "top_p_bound must be greater than 0 and less than top_p",
    ),
    "add_BOS": MegatronField(False, BOOLEAN, "add_BOS must be a boolean value"),
    "stop_on_double_eol": MegatronField(False, BOOLEAN, "stop_on_double_eol must be a boolean value"),
    "stop_on_eol": MegatronField(False, BOOLEAN, "stop_on_eol must be a boolean value"),
    "prevent_newline_after_colon": MegatronField(
        False, BOOLEAN, "prevent_newline_after_colon must be a boolean value"
    ),
    "random_seed": MegatronField(
        None,
        {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
        "random_seed must be integer",
        "random_seed must be a positive integer",
    ),
    "no_log": MegatronField(False, BOOLEAN, "no_log must be a boolean value"),  # prompts are never logged
    "beam_width": MegatronField(
        None,
        {"type": "integer", "minimum": 1, "maximum": 64},
        "beam_width must be integer",
        "beam_width must be an integer > 1",
    ),
    "stop_token": MegatronField(
        None,
        {"type": "integer", "minimum": 0},
        "stop_token must be an integer",
        "stop_token must be an id of the vocabulary",
    ),
    "length_penalty": MegatronField(
        1.0,
        {"type": "number", "minimum": -100, "maximum": 100},
        "length_penalty must be a float",
        "length_penalty must be from -100 to 100",
    ),
}
RENAMED_FIELDS = {
    "max_len": "max_len is no longer used.  Replace with tokens_to_generate",
    "sentences": "sentences is no longer used.  Replace with prompts",
}
MEGATRON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["prompts"],
    "additionalProperties": False,
    "properties": {
        "prompts": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
        **{
            name: field.schema if field.default is None else {**field.schema, "default": field.default}
            for name, field in MEGATRON_FIELDS.items()
        },
    },
}


def megatron_request(body: Any, model: LanguageModel, max_tokens: int) -> tuple[GenerationRequest, bool]:
    """(the request in the body of `PUT /api`, whether it asks for log-probabilities).

    max_tokens: limit of prompts times positions. Raises RequestError.
    """
    if not isinstance(body, dict) or "prompts" not in body:
        raise RequestError(400, "prompts argument required")
    for name, message in RENAMED_FIELDS.items():
        if name in body:
            raise RequestError(400, message)
    prompts = body["prompts"]
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise RequestError(400, "prompts is not a list of strings")
    if not prompts:
        raise RequestError(400, "prompts is empty")
    if len(prompts) > MAX_PROMPTS:
        raise RequestError(400, f"Maximum number of prompts is {MAX_PROMPTS}")
    unknown = next((name for name in body if name not in MEGATRON_SCHEMA["properties"]), None)
    if unknown is not None:
        hint = nearest(unknown[:100], MEGATRON_SCHEMA["properties"])
        raise RequestError(400, f"{unknown[:100]} is not known{hint}")
    given = {}
    for name, field in MEGATRON_FIELDS.items():
        given[name] = value = body.get(name, field.default)
        if name in body and not _has_type(value, field.schema["type"]):
            raise RequestError(400, field.wrong_type)
        if name in body and not _in_range(value, field.schema):
            raise RequestError(400, field.wrong_value)
    _check_megatron_combinations(given, body, model)
    add_bos = given["add_BOS"]
    if not add_bos and not all(prompts):
        raise RequestError(400, "Empty prompts require add_BOS=true")
    encoded = encode(prompts, model, add_bos=add_bos)
    wanted = given["tokens_to_generate"]
    if any(len(ids) + wanted > model.max_length for ids in encoded):
        raise RequestError(400, "Length of prompt + tokens_to_generate longer than allowed")
    rows = given["beam_width"] or len(encoded)
    if (tokens := rows * (max(map(len, encoded)) + wanted)) > max_tokens:
        raise RequestError(400, f"Too many tokens.  {tokens} is greater than {max_tokens}")
    rules = (
        "temperature",
        "top_k",
        "top_p",
        "top_p_decay",
        "top_p_bound",
        "stop_token",
        "stop_on_eol",
        "stop_on_double_eol",
        "prevent_newline_after_colon",
    )
    sampling = Sampling(
        max_new_tokens=wanted, prompt_logprobs=given["logprobs"], **{name: given[name] for name in rules}
    )
    return (
        GenerationRequest(
            encoded,
            sampling,
            given["random_seed"],
            beam_width=given["beam_width"],
            length_penalty=given["length_penalty"],
        ),
        given["logprobs"],
    )


def _has_type(value: Any, kind: str) -> bool:
    kinds: dict[str, Any] = {"integer": int, "number": (int, float), "boolean": bool}
    return isinstance(value, kinds[kind]) and isinstance(value, bool) == (kind == "boolean")


def _in_range(value: Any, schema: Mapping) -> bool:
    low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    finite = not isinstance(value, float) or value - value == 0
    return (
        finite
        and (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
    )


def _check_megatron_combinations(given: Mapping, body: Mapping, model: LanguageModel) -> None:
    lines = given["stop_on_eol"] or given["stop_on_double_eol"]
    beams = given["beam_width"] is not None
    rules = (
        (
            given["tokens_to_generate"] or given["logprobs"],
            "tokens_to_generate=0 implies logprobs should be True",
        ),
        (
            scores_prompts(model) or not given["logprobs"],
            "logprobs asks for those of the prompt, and an encoder-decoder has none",
        ),
        (not (given["top_p"] and given["top_k"]), "cannot set both top-k and top-p samplings."),
        ("top_p_decay" not in body or given["top_p"], "top_p_decay cannot be set without top_p"),
        ("top_p_bound" not in body or given["top_p"], "top_p_bound cannot be set without top_p"),
        (given["top_p_bound"] <= given["top_p"], "top_p_bound must be greater than 0 and less than top_p"),
        (not beams or len(body["prompts"]) == 1, "When doing beam_search, batch size must be 1"),
        (not beams or given["tokens_to_generate"], "beam_width needs tokens_to_generate of at least 1"),
        (
            not beams or not (lines or given["top_k"] or given["top_p"]),
            "beam_width cannot be combined with top_k, top_p or stop_on_eol and stop_on_double_eol",
        ),
        (beams or "length_penalty" not in body, "length_penalty cannot be set without beam_width"),
        (
            not (lines and "stop_token" in body),
            "stop_token cannot be set with stop_on_eol or stop_on_double_eol",
        ),
        (
            given["stop_token"] is None or given["stop_token"] < model.tokenizer.vocab_size,
            "stop_token must be an id of the vocabulary",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise RequestError(400, message)


Id = Annotated[StrictInt, Field(ge=0)]
Ids = Annotated[list[Id], Field(min_length=1)]


class CompletionRequest(BaseModel):
    """The body of OpenAI's completions, with further fields for what only Megatron-LM's server offers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: (
        StrictStr
        | Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    ) = Field(
        description=(
            "a text, a list of texts, token ids, or a list of lists of token ids; an empty text starts a new"
            " document"
        )
    )
    model: StrictStr | None = Field(None, description="as /v1/models names it")
    max_tokens: StrictInt = Field(
        16, ge=0, description="most tokens to generate; 0 with echo and logprobs scores the prompt"
    )
    temperature: float = Field(
        1.0, ge=0, le=100, strict=True, description="0: always the most probable token"
    )
    top_p: float = Field(1.0, gt=0, le=1, strict=True)
    top_k: StrictInt = Field(0, ge=0, le=1000, description="0: no limit")
    top_p_decay: float = Field(
        0.0, ge=0, le=1, strict=True, description="multiplies top_p after every token; 0: none"
    )
    top_p_bound: float = Field(0.0, ge=0, le=1, strict=True, description="lower bound of top_p as it decays")
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = Field(
        None, description="return log-probabilities, and those of so many alternatives"
    )
    echo: StrictBool = Field(False, description="begin each text with its prompt")
    seed: Annotated[StrictInt, Field(ge=0, le=MAX_SEED)] | None = None
    first_prompt: StrictInt = Field(
        0,
        ge=0,
        le=MAX_SEED,
        description="the number of the first prompt in a longer list, on which the draws depend",
    )
    stop: (
        Annotated[StrictStr, Field(min_length=1, max_length=1000)]
        | Annotated[list[Annotated[StrictStr, Field(min_length=1, max_length=1000)]], Field(max_length=16)]
        | None
    ) = None
    stop_token: Id | None = Field(
        None, description="id that ends a text, instead of the end-of-document token"
    )
    stop_on_eol: StrictBool = False
    stop_on_double_eol: StrictBool = False
    prevent_newline_after_colon: StrictBool = False
    add_bos: StrictBool = Field(False, description="put the end-of-document token before every prompt")
    beam_width: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    length_penalty: float = Field(1.0, ge=-100, le=100, strict=True)
    n: Annotated[StrictInt, Field(ge=1, le=1)] = 1
    best_of: Annotated[StrictInt, Field(ge=1, le=1)] = 1
    stream: StrictBool = False

    def texts(self) -> list[str] | None:
        """The prompts as texts; None where they are token ids."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [prompt for prompt in prompts if isinstance(prompt, str)] or None


def completion_request(
    body: Any, model: LanguageModel, name: str, max_tokens: int
) -> tuple[GenerationRequest, CompletionRequest]:
    """(the request in the body of `POST /v1/completions`, the body itself); raises RequestError."""
    try:
        asked = CompletionRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = next((str(part) for part in first["loc"]), "body")
        raise RequestError(400, f"{place}: {first['msg']}") from None
    if asked.model is not None and asked.model != name:
        raise RequestError(404, f"model {asked.model!r} is not served here; ask for {name!r}")
    lines, top_p = asked.stop_on_eol or asked.stop_on_double_eol, 0.0 if asked.top_p == 1 else asked.top_p
    beams, draws = asked.beam_width is not None, asked.top_k or top_p or asked.temperature != 1
    rules = (
        (
            asked.max_tokens or (asked.echo and asked.logprobs is not None),
            "max_tokens: 0 needs echo and logprobs",
        ),
        (
            scores_prompts(model) or not (asked.echo and asked.logprobs is not None),
            "echo: with logprobs it asks for the prompt's, and an encoder-decoder has none",
        ),
        (not (asked.top_k and top_p), "top_k: cannot be set together with top_p"),
        (not asked.top_p_decay or top_p, "top_p_decay: cannot be set without top_p"),
        (not asked.top_p_bound or asked.top_p_decay, "top_p_bound: cannot be set without top_p_decay"),
        (asked.top_p_bound <= asked.top_p, "top_p_bound: must be at most top_p"),
        (
            not beams or not (lines or draws or asked.stop or asked.stream or asked.echo),
            (
                "beam_width: cannot be combined with temperature, top_k, top_p, stop, stop_on_eol,"
                " stop_on_double_eol, echo or stream"
            ),
        ),
        (beams or asked.length_penalty == 1, "length_penalty: cannot be set without beam_width"),
        (not beams or asked.max_tokens, "beam_width: needs max_tokens of at least 1"),
        (
            asked.stop_token is None or not lines,
            "stop_token: cannot be set with stop_on_eol or stop_on_double_eol",
        ),
        (
            asked.stop_token is None or asked.stop_token < model.tokenizer.vocab_size,
            f"stop_token: must be below {model.tokenizer.vocab_size}, the size of the vocabulary",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise RequestError(400, message)
    prompts = (
        [asked.prompt] if isinstance(asked.prompt, str) or isinstance(asked.prompt[0], int) else asked.prompt
    )
    if beams and len(prompts) > 1:
        raise RequestError(400, "beam_width: takes one prompt a request")
    encoded = encode(prompts, model, add_bos=asked.add_bos)
    for number, ids in enumerate(encoded, 1):
        if (total := len(ids) + asked.max_tokens) > model.max_length:
            raise RequestError(
                400,
                f"prompt: number {number} has {len(ids)} tokens; with max_tokens = {asked.max_tokens} that is"
                f" {total}, but the model has {model.max_length} positions",
            )
    rows = asked.beam_width or len(encoded)
    if (total := rows * (max(map(len, encoded)) + asked.max_tokens)) > max_tokens:
        raise RequestError(
            400,
            f"{'beam_width' if beams else 'prompt'}: {rows} {'beams' if beams else 'prompts'} of up to"
            f" {total // rows} tokens each are {total}, more than the {max_tokens} that a request may take;"
            " send fewer at a time",
        )
    sampling = Sampling(
        max_new_tokens=asked.max_tokens,
        greedy=asked.temperature == 0,
        temperature=asked.temperature or 1.0,
        top_k=asked.top_k,
        top_p=top_p,
        top_p_decay=asked.top_p_decay,
        top_p_bound=asked.top_p_bound,
        stop=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ()),
        stop_token=asked.stop_token,
        stop_on_eol=asked.stop_on_eol,
        stop_on_double_eol=asked.stop_on_double_eol,
        prevent_newline_after_colon=asked.prevent_newline_after_colon,
        top_logprobs=asked.logprobs or 0,
        prompt_logprobs=asked.echo and asked.logprobs is not None,
    )
    return (
        GenerationRequest(
            encoded, sampling, asked.seed, asked.first_prompt, asked.beam_width, asked.length_penalty
        ),
        asked,
    )


def scores_prompts(model: LanguageModel) -> bool:
    """Whether the model gives log-probabilities of a prompt; an encoder-decoder does not."""
    return not isinstance(model.model, EncoderDecoder)


def encode(prompts: list, model: LanguageModel, *, add_bos: bool) -> list[list[int]]:
    """The ids, at least one, of each prompt, which is a text or ids already; raises RequestError."""
    encoded = []
    for number, prompt in enumerate(prompts, 1):
        if isinstance(prompt, str):
            try:
                prompt.encode()
                prompt = model.encode(prompt)
            except UnicodeEncodeError:
                raise RequestError(
                    400, f"prompt: number {number} is not valid Unicode text (a lone surrogate)"
                ) from None
            except UserError as error:  # some tokenizers cannot encode every text
                raise RequestError(400, f"prompt: number {number}: {error}") from None
        elif (largest := max(prompt)) >= model.tokenizer.vocab_size:
            raise RequestError(
                400,
                f"prompt: id {largest} is not below {model.tokenizer.vocab_size}, the size of the vocabulary",
            )
        try:
            encoded.append([*([model.start] if add_bos or not prompt else []), *prompt])
        except UserError as error:
            raise RequestError(400, f"prompt: {error}") from None
    return encoded
